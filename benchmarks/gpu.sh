#!/usr/bin/env bash
# Runs the tests that need a GPU, and the GPU benchmark, on this machine. Installs nothing.
#
#     benchmarks/gpu.sh [FOLDER]
#
# Writes gpu-tests*.xml and the benchmark's results to FOLDER ($OUT, or benchmarks/results). Exits with 0 if
# everything passed, with 1 if a step failed (later steps still run), with 2 if nothing can run here.
#
#     PYTHON                 a Python with torch, Triton, pytest, msgspec and tqdm (default: python3)
#     VT_FAST_GPU_BUDGET     minutes for the benchmark (default: 60)
#     VT_FAST_GPU_QUICK=1    a smoke test on tiny shapes; its times mean nothing
#     VT_FAST_GPU_JOBS       processes for the tests, each with a context on the GPU; more than one needs
#                            pytest-xdist (default: one per processor, at most 8; 1 without pytest-xdist)
#     VT_FAST_GPU_CHECK=1    also run some tests under compute-sanitizer: memcheck and racecheck
#     VT_FAST_COMMIT         the measured commit, outside a git checkout
set -euo pipefail

python=${PYTHON:-python3}
budget=${VT_FAST_GPU_BUDGET:-60}
quick=${VT_FAST_GPU_QUICK:-0}
check=${VT_FAST_GPU_CHECK:-0}
jobs=${VT_FAST_GPU_JOBS:-}
out=${1:-${OUT:-benchmarks/results}}

fail() {
    echo "error: $1" >&2
    exit 2
}

# A relative FOLDER is relative to the caller's directory.
case $out in
benchmarks/results | /*) ;;
*) out=$PWD/$out ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ $budget =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "VT_FAST_GPU_BUDGET must be a number of minutes, got \"$budget\""
command -v "$python" >/dev/null || fail "\"$python\" is not on this machine; set PYTHON=..."
"$python" -c 'import torch' || fail "torch does not import in $python; install a build of it for your GPU"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail "torch finds no GPU; check the driver (nvidia-smi, rocm-smi), torch.version.cuda and torch.version.hip"
for package in triton pytest msgspec tqdm; do
    "$python" -c "import $package" || fail "$package does not import in $python; pip install $package"
done
[[ -z $jobs || $jobs =~ ^[1-9][0-9]*$ ]] || fail "VT_FAST_GPU_JOBS must be a number of processes, got \"$jobs\""
if "$python" -c 'import xdist' 2>/dev/null; then
    processors=$(getconf _NPROCESSORS_ONLN)
    jobs=${jobs:-$((processors < 8 ? processors : 8))}
elif ((${jobs:=1} > 1)); then
    fail "VT_FAST_GPU_JOBS=$jobs needs pytest-xdist in $python; pip install pytest-xdist"
fi
[[ $check != 1 ]] || command -v compute-sanitizer >/dev/null ||
    fail "VT_FAST_GPU_CHECK=1 needs compute-sanitizer, which is in NVIDIA's CUDA toolkit"
mkdir -p "$out"

# Folders and files with tests that need a GPU. Others import packages that may be missing.
tests=(tests/gpu tests/ops tests/cuda)
while IFS= read -r file; do
    tests+=("$file")
done < <(grep -rlE 'mark\.gpu\b' --include='test_*.py' tests | grep -vE '^tests/(gpu|ops|cuda)/' | sort)
# Runs alone, as it fills the GPU's memory.
large=tests/gpu/test_large.py

# Every op, forward and backward, with partly filled tiles and with masks.
checked=(tests/gpu/test_sizes.py tests/gpu/test_masks.py tests/cuda/test_values.py::test_every_option_layout_and_dtype)

# Tests mostly wait for Triton, which compiles on one processor.
parallel=()
((jobs == 1)) || parallel=(-n "$jobs" --dist worksteal)
pytest=("$python" -m pytest -m gpu -p no:cacheprovider)
# A kernel that never ends would stop all tests; ending the process ends it.
if "$python" -c 'import pytest_timeout' 2>/dev/null; then
    pytest+=(--timeout=600 --timeout-method=thread)
fi

status=0
step() {
    local name=$1
    shift
    echo "== $name"
    "$@" || {
        echo "error: $name: failed with status $?" >&2
        status=1
    }
}

bounded=()
if command -v timeout >/dev/null; then
    bounded=(timeout --foreground --kill-after=60 900)  # a kernel may hang
fi
step "check (python -m vt_fast check)" "${bounded[@]}" "$python" -m vt_fast check --seconds 300 --require triton
step "tests (${tests[*]})" "${pytest[@]}" "${parallel[@]}" --junitxml="$out/gpu-tests.xml" --ignore="$large" "${tests[@]}"
step "tests ($large)" "${pytest[@]}" --junitxml="$out/gpu-tests-large.xml" "$large"

if [[ $check == 1 ]]; then
    # Without caching each tensor has its own memory, so the checker sees where it ends.
    for tool in memcheck racecheck; do
        step "$tool (${checked[*]})" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 99 \
            --log-file "$out/gpu-$tool.txt" "${pytest[@]}" "${checked[@]}"
    done
fi

words=(gpu --results "$out" --budget "$budget")
[[ $quick == 1 ]] && words+=(--quick)
# A compiler may hang uninterruptibly. The file has what was measured until then.
limit=()
if command -v timeout >/dev/null; then
    limit=(timeout --foreground --kill-after=60 "$("$python" -c 'import sys; print(round(90 * float(sys.argv[1]) + 600))' "$budget")")
fi
step "benchmark (python -m benchmarks ${words[*]})" "${limit[@]}" "$python" -m benchmarks "${words[@]}"

echo "== in $out:"
for file in "$out"/gpu-tests*.xml "$out"/gpu-*check.txt "$out"/gpu-*.csv; do
    [[ -e $file ]] && echo "$file"
done
exit "$status"
