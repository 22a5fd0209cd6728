#!/usr/bin/env bash
# The tests that need a GPU, and the GPU benchmark, on the GPU of this machine. Installs nothing.
#
#     benchmarks/gpu.sh [FOLDER]
#
# Leaves gpu-tests*.xml and the benchmark's JSON in FOLDER ($OUT, benchmarks/results). Exits with 0 if all went
# well, with 1 if something did not (the rest runs all the same), with 2 if nothing can run here.
#
#     PYTHON                 which Python, with torch and Triton in it (default: python3)
#     VT_FAST_GPU_BUDGET     minutes that the benchmark may take (default: 60)
#     VT_FAST_GPU_QUICK=1    tiny shapes: does it run? Its figures mean nothing
#     VT_FAST_GPU_JOBS       processes that tests run in, each with a context on the GPU; more than one needs
#                            pytest-xdist (default: one for each processor, at most 8; 1 without pytest-xdist)
#     VT_FAST_GPU_CHECK=1    also some of the tests under compute-sanitizer: memcheck and racecheck
#     VT_FAST_COMMIT         what is measured, where this is no git checkout
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

# A folder that is named is meant from where the script was called.
case $out in
benchmarks/results | /*) ;;
*) out=$PWD/$out ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ $budget =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "VT_FAST_GPU_BUDGET must be a number of minutes, got \"$budget\""
command -v "$python" >/dev/null || fail "\"$python\" is not on this machine; name a Python: PYTHON=..."
"$python" -c 'import torch' || fail "torch does not import in $python; install a build of it for your GPU"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail "torch finds no GPU; look at the driver (nvidia-smi, rocm-smi) and at torch.version.cuda and .hip"
"$python" -c 'import triton' || fail "Triton does not import in $python; pip install triton"
"$python" -c 'import pytest' || fail "pytest does not import in $python; pip install pytest"
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
"$python" -m vt_fast info

# All folders with tests that need a GPU, and files elsewhere: other tests import packages that may not be here.
tests=(tests/gpu tests/ops)
while IFS= read -r file; do
    tests+=("$file")
done < <(grep -rlE 'mark\.gpu\b' --include='test_*.py' tests | grep -vE '^tests/(gpu|ops)/' | sort)
# These take the GPU's memory for themselves.
large=tests/gpu/test_large.py

# Every op, forward and backward, at sizes where a tile is not full and with masks.
checked=(tests/gpu/test_sizes.py tests/gpu/test_masks.py)

# Most of the time of a test is Triton's, which compiles with one processor.
parallel=()
((jobs == 1)) || parallel=(-n "$jobs" --dist worksteal)
pytest=("$python" -m pytest -m gpu -p no:cacheprovider)

status=0
step() {
    local name=$1
    shift
    echo "== $name"
    "$@" || {
        echo "error: $name: failed, the status is $?" >&2
        status=1
    }
}

step "tests (${tests[*]})" "${pytest[@]}" "${parallel[@]}" --junitxml="$out/gpu-tests.xml" --ignore="$large" "${tests[@]}"
step "tests ($large)" "${pytest[@]}" --junitxml="$out/gpu-tests-large.xml" "$large"

if [[ $check == 1 ]]; then
    # Each tensor in memory of its own: in a cached block, the checker would not see where one ends.
    for tool in memcheck racecheck; do
        step "$tool (${checked[*]})" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 99 \
            --log-file "$out/gpu-$tool.txt" "${pytest[@]}" "${checked[@]}"
    done
fi

words=(gpu --results "$out" --budget "$budget")
[[ $quick == 1 ]] && words+=(--quick)
# A compiler may hang where nothing can interrupt it; what was measured until then is in the file.
limit=()
if command -v timeout >/dev/null; then
    limit=(timeout --foreground --kill-after=60 "$("$python" -c 'import sys; print(round(90 * float(sys.argv[1]) + 600))' "$budget")")
fi
step "benchmark (python -m benchmarks ${words[*]})" "${limit[@]}" "$python" -m benchmarks "${words[@]}"

echo "== in $out:"
for file in "$out"/gpu-tests*.xml "$out"/gpu-*check.txt "$out"/gpu-*.json; do
    [[ -e $file ]] && echo "$file"
done
exit "$status"
