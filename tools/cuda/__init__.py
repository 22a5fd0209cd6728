"""What nvcc makes of the CUDA kernels, and a model of their speed."""
