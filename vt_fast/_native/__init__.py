"""The build's output: libvt_fast_cpu.so, and build.json.

Without kernels only build.json, which has the reason.
"""
