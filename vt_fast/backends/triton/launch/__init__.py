"""One module for each op: what its kernels are launched with."""
