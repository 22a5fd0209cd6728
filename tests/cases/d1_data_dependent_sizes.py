"""pytorch#180202, #147672: a number of pixels or samples that depends on data (kept patches, kept boxes)."""

import sys

import torch

from vt_fast.nn import FilterTokenizer


class Pixels(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tokenizer = FilterTokenizer(8, 4)

    def forward(self, x, keep):
        return self.tokenizer(x[keep][None])


class Control(Pixels):
    def forward(self, x, keep):
        rows = x[keep][None]
        return torch.nn.functional.scaled_dot_product_attention(self.tokenizer.filters[None], rows, rows)


class Samples(Pixels):
    def forward(self, x, keep):
        return self.tokenizer(x[keep])


bag, keep = (torch.randn(50, 8), torch.rand(50) > 0.5), (torch.randn(6, 8, 5, 5), torch.rand(6) > 0.4)
torch.export.export(Control(), bag)
bad = []
for net, inputs in ((Pixels(), bag), (Samples(), keep)):
    try:
        torch.export.export(net, inputs)
    except Exception as error:
        bad.append(f"{type(net).__name__}: {type(error).__name__}: {str(error)[:70]}")
sys.exit("\n".join(bad) or None)
