"""Hardware counters of the GPU kernels, by Nsight Compute."""
