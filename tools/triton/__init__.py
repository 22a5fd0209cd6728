"""The Triton kernels without a GPU (compiler output, a time model and launch settings)."""
