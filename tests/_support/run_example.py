"""Run an example: run_example.py SCRIPT ARGUMENTS, with a stub if torchvision's own library does not load.

If TESTS_LEAVE is a folder, each process saves its weights and last gradients there.
"""

import os
import runpy
import sys
from pathlib import Path


def main():
    import torch

    from tests._support import torchvision_stub

    torchvision_stub.importable()
    script = sys.argv[1]
    sys.path.insert(0, str(Path(script).parent))
    run = runpy.run_path(script)["main"](sys.argv[2:])
    if folder := os.environ.get("TESTS_LEAVE"):
        named = dict(run.net.named_parameters())
        left = {
            "weights": {name: each.detach() for name, each in named.items()},
            "gradients": {name: each.grad for name, each in named.items()},
        }
        torch.save(left, Path(folder) / f"rank{run.group.rank}.pt")


if __name__ == "__main__":
    main()
