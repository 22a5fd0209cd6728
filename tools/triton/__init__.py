"""The Triton kernels without a GPU (compiler output, a time model, launch settings) and hardware counters."""
