"""Faults in csrc/torch/cuda_calls.h and cuda_ops.h."""

# ruff: noqa: E501

from tools.mutants.planted.fault import TOKENIZE, Fault

CALLS = [
    Fault(
        "map-aligned-to-8-bytes",
        "A map is read in place at an address that 16-byte copies do not take.",
        "reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;",
        "reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 8 == 0;",
    ),
    Fault(
        "map-of-misaligned-samples",
        "Samples whose distance is no multiple of 16 bytes are read in place.",
        "if (!aligned(tensor) || (batch > 1 && map.batch % each != 0)) return {};",
        "if (!aligned(tensor)) return {};",
    ),
    Fault(
        "map-of-misaligned-pixels",
        "Pixels whose distance is no multiple of 16 bytes are read in place.",
        "!even || row % each != 0 || row < channels",
        "!even || row < channels",
    ),
    Fault(
        "map-of-overlapping-pixels",
        "A map that is expanded over pixels is read in place.",
        "row % each != 0 || row < channels) return {};",
        "row % each != 0) return {};",
        harmless="such a map may be read in place, and none is written",
    ),
    Fault(
        "map-of-misaligned-channels",
        "Channels whose distance is no multiple of 8 bytes are read in place.",
        "map.channel % 4 == 0 : pixels % 8 == 0;",
        "map.channel % 2 == 0 : pixels % 8 == 0;",
    ),
    Fault(
        "map-of-channels-apart-as-shifted",
        "Channels of an odd number of pixels with gaps are read without them.",
        ": map.channel == pixels;",
        ": true;",
    ),
    Fault(
        "map-of-rows-apart",
        "Rows of pixels with gaps are read without them, where pixels are contiguous.",
        "(height == 1 || map.row == width);",
        "true;",
    ),
    Fault(
        "map-of-rows-apart-in-channels-last",
        "Rows of pixels with gaps are read without them, where channels are contiguous.",
        "const bool even = height == 1 || width == 1 || map.row == width * map.column;",
        "const bool even = true;",
    ),
    Fault(
        "map-never-in-place",
        "Each map is copied first.",
        "if (const auto found = layout.fits(*tensor)) {\n      map_ = *found;\n      return;\n    }\n    copy_ = layout.empty(*tensor);\n    torch::stable::copy_",
        "copy_ = layout.empty(*tensor);\n    torch::stable::copy_",
    ),
    Fault(
        "map-first-of-misaligned-rows",
        "Rows of pixels that are no multiple of 8 bytes are read by 8.",
        "call.pixels % 4 != 0 ? Layout::shifted",
        "call.pixels % 2 != 0 ? Layout::shifted",
    ),
    Fault(
        "result-not-copied-back",
        "dX of a map with other strides is not written.",
        "if (copy_) torch::stable::copy_(*tensor_, *copy_);",
        "",
    ),
    Fault(
        "rows-not-dense",
        "Operands with strides are read as if they were dense.",
        "return tensor.is_contiguous() && aligned(tensor) ? tensor",
        "return aligned(tensor) ? tensor",
    ),
    Fault(
        "rows-not-aligned",
        "Operands are read in place at addresses that 16-byte copies do not take.",
        "return tensor.is_contiguous() && aligned(tensor) ? tensor",
        "return tensor.is_contiguous() ? tensor",
    ),
    Fault(
        "biases-in-another-dtype",
        "Biases of the map's dtype are read as float.",
        "shared ? 0 : dense_biases->numel() / dense_biases->size(0), is_float}",
        "shared ? 0 : dense_biases->numel() / dense_biases->size(0), true}",
    ),
    Fault(
        "call-channels-of-all-heads",
        "Each head of tokenize works on the channels of all.",
        "sizes.channels = static_cast<int32_t>(tokenize ? call.channels / call.query_heads : call.channels);",
        "sizes.channels = static_cast<int32_t>(call.channels);",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "refuses-64-rows",
        "Calls are refused that the kernels take.",
        "call.key_rows > most_rows",
        "call.key_rows >= most_rows",
    ),
    Fault(
        "refuses-no-65-columns",
        "Calls are taken that Python says are refused.",
        "if (call.extra_columns > most_extra_columns) return",
        "if (call.extra_columns > most_extra_columns + 1) return",
    ),
    Fault(
        "refuses-no-odd-heads",
        "Values of a head that are no multiple of 16 bytes are copied by 16.",
        "(call.out_channels / blocks) % each != 0",
        "call.out_channels % each != 0",
    ),
    Fault(
        "refuses-no-odd-channels",
        "Maps whose channels are no multiple of 16 bytes are copied by 16.",
        "if ((call.channels / call.key_blocks) % each != 0 ||",
        "if (",
    ),
    Fault(
        "refuses-no-large-maps",
        "Pixels are counted in 32 bits.",
        "if (call.pixels > INT32_MAX - 64 ||",
        "if (",
    ),
]

OPS = [
    Fault(
        "ops-residual-gradient-not-copied-back",
        "The gradient of a residual with other strides than x is not written.",
        "to_residual.finish();",
        "",
    ),
    Fault(
        "ops-residual-like-x",
        "The residual's gradient is written in x's place.",
        "call.dresidual = to_residual.map();",
        "call.dresidual = to.map();",
    ),
    Fault(
        "ops-grad-of-extra-columns",
        "Gradients of extra values are those of the first channels.",
        "narrow(const_cast<Tensor&>(grad), 2, columns, grad.size(2) - columns)",
        "narrow(const_cast<Tensor&>(grad), 2, 0, grad.size(2) - columns)",
    ),
    Fault(
        "ops-empty-batch-not-cleared",
        "Gradients over an empty batch are what the memory held.",
        "return call.batch == 0 ? torch::stable::zero_(result) : result;",
        "return result;",
    ),
    Fault(
        "ops-bias-gradient-as-float",
        "Gradients of 16-bit biases are written as float.",
        "cuda::Biases{result->mutable_data_ptr(), 0, dtype_code(*result) == aoti_torch_dtype_float32()}",
        "cuda::Biases{result->mutable_data_ptr(), 0, true}",
    ),
    Fault(
        "ops-exact-not-kept",
        "A backward in 16 bits starts from rounded tokens.",
        "keep_exact && dtype_code(x) != aoti_torch_dtype_float32()",
        "false",
    ),
]
