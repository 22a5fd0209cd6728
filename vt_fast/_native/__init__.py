"""The build's output: libvt_fast_cpu.so, build_facts and build.json.

Without kernels only build.json, which has the reason.
"""
