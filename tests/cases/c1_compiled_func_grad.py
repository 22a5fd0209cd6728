"""pytorch#170834, #168393, flash-attention#2071: torch.func.grad inside of torch.compile."""

import sys

import torch

import vt_fast

x, q = torch.randn(2, 8, 5, 5), torch.randn(4, 8)
grad = torch.func.grad(lambda q: vt_fast.tokenize(x, q).square().sum())
expected = grad(q)  # works
try:
    torch.testing.assert_close(torch.compile(grad, backend="aot_eager")(q), expected)
except Exception as error:
    sys.exit(f"{type(error).__name__}: ... {str(error).split('got RuntimeError')[-1][:110]}")
