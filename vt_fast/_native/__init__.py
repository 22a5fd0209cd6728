"""What the build leaves here.

That is libvt_fast_cpu.so, build_facts and build.json; or, without kernels, build.json alone with the reason.
"""
