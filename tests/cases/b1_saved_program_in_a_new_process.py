"""pytorch#143773, PR #152029: a saved program is loaded by another process that imports the package, as one does."""

import subprocess
import sys
import tempfile
import warnings

import torch

from vt_fast.nn import VisualTransformerStack

warnings.simplefilter("ignore")
net, x = VisualTransformerStack(32, 2, num_tokens=4).eval(), torch.randn(2, 32, 6, 6)
folder = tempfile.mkdtemp()
torch.export.save(torch.export.export(net, (x,)), f"{folder}/net.pt2")
torch.jit.save(torch.jit.trace(net, (x,), check_trace=False), f"{folder}/net.ts")
bad = []
for load in (
    f"torch.export.load({folder + '/net.pt2'!r}).module()",
    f"torch.jit.load({folder + '/net.ts'!r})",
):
    code = f"import torch, vt_fast; print({load}(torch.zeros(2, 32, 6, 6))[1].shape)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    if done.returncode:
        bad.append(
            f"{load.split('(')[0]} after `import vt_fast`: {done.stderr.strip().splitlines()[-1][:110]}"
        )
sys.exit("\n".join(bad) or None)
