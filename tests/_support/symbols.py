"""The symbols of compiled libraries."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

# Symbols of torch's stable ABI as of torch 2.11. Extending this list may raise the oldest torch that loads.
TORCH_SYMBOLS = {
    "aoti_torch_abi_version",
    "aoti_torch_aten_fill__Scalar",
    "aoti_torch_check",
    "aoti_torch_delete_library_object",
    "aoti_torch_delete_tensor_object",
    "aoti_torch_device_type_cpu",
    "aoti_torch_empty_strided",
    "aoti_torch_get_device_index",
    "aoti_torch_get_device_type",
    "aoti_torch_get_dim",
    "aoti_torch_get_dtype",
    "aoti_torch_get_numel",
    "aoti_torch_get_size",
    "aoti_torch_get_sizes",
    "aoti_torch_get_storage_size",
    "aoti_torch_get_stride",
    "aoti_torch_get_strides",
    "aoti_torch_is_contiguous",
    "aoti_torch_is_defined",
    "aoti_torch_library_def",
    "aoti_torch_library_init_def",
    "aoti_torch_library_init_fragment",
    "aoti_torch_library_init_impl",
    "aoti_torch_new_tensor_handle",
    "aoti_torch_new_uninitialized_tensor",
    "torch_call_dispatcher",
    "torch_delete_list",
    "torch_delete_string",
    "torch_get_const_data_ptr",
    "torch_get_mutable_data_ptr",
    "torch_get_num_threads",
    "torch_library_impl",
    "torch_list_get_item",
    "torch_list_push_back",
    "torch_list_size",
    "torch_new_list_reserve_size",
    "torch_new_string_handle",
    "torch_parallel_for",
    "torch_string_c_str",
    "torch_string_length",
}
DTYPE_SYMBOL = re.compile(r"(aoti_)?torch_dtype_\w+")
# The C library, the compiler's libraries and the C++ library have versioned symbols.
SYSTEM_SYMBOL = re.compile(r"\w+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+")
# Weak: used if they are defined.
OPTIONAL_SYMBOLS = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def symbols(path: Path, *options: str) -> list[str]:
    """What nm lists for a library or an object."""
    done = subprocess.run(["nm", *options, str(path)], capture_output=True, text=True, check=True)
    # "0000000000000000 T name(arguments)", the address missing where it is not defined
    return [line[17:].strip().partition(" ")[2].partition("(")[0] for line in done.stdout.splitlines()]


def needed_of_torch(path: Path) -> set[str]:
    """What a library needs besides the C and C++ libraries, and the numbers of dtypes."""
    needed = symbols(path, "-D", "--undefined-only")
    rest = {name for name in needed if not SYSTEM_SYMBOL.fullmatch(name)} - OPTIONAL_SYMBOLS
    return {name for name in rest if not DTYPE_SYMBOL.fullmatch(name)}
