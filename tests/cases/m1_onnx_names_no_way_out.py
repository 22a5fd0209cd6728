"""xformers#699, #857: ONNX export of the default backend. backend="reference" works, but nothing names that way."""

import sys
import warnings

import torch

try:
    import onnxscript  # noqa: F401
except ModuleNotFoundError:
    sys.exit("needs: pip install onnx onnxscript")
from vt_fast.nn import VisualTransformerStack, set_backend

warnings.simplefilter("ignore")
net, x = VisualTransformerStack(16, 2, num_tokens=4).eval(), torch.randn(1, 16, 6, 6)
try:
    torch.onnx.export(net, (x,), dynamo=True, verbose=False)
except Exception as error:
    if "reference" not in str(error):
        set_backend(net, "reference")
        torch.onnx.export(net, (x,), dynamo=True, verbose=False)  # the way out
        lines = [line for line in str(error).splitlines() if "vt_fast" in line]
        sys.exit(f"{type(error).__name__}: {lines[0][:150]}")
