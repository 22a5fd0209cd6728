"""The demo: a small Visual Transformer learns digits, tokens are drawn, and the ops are measured."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# What has to be there, by the names under which it is imported and under which it is installed.
_NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
    "PIL": "Pillow",
}


def run(pictures: Sequence[Path], output: Path, *, quick: bool = False) -> int:
    """Run the whole demo and return the exit status: 0, or 2 for something the user has to put right.

    Args:
        pictures: files to draw clustering tokens on; none for scikit-learn's two sample photographs.
        output: the folder for the sheets and the report; made if need be.
        quick: a few seconds of everything, to see that it runs; its figures mean nothing.
    """
    for module, package in _NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            # matplotlib, for one, fails where Pillow is missing
            missing = _NEEDED.get(error.name or module, package)
            return _refuse(f'the demo needs {missing}: pip install ".[demo]" in vt_fast\'s folder ({error})')
    # Only now, since these import the packages of the extra.
    from vt_fast.demo.pictures import PictureError, load_all
    from vt_fast.demo.story import tell

    try:
        # Before the training: nobody wants to wait a minute for the news that a file is not there.
        loaded = load_all(pictures)
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output, prefix=".vt_fast_"):
            pass  # a folder may be there and take no files
        tell(loaded, output, quick=quick)
    except PictureError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _refuse(f"cannot write to the folder {output}: {error.strerror or error}")
    return 0


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2
