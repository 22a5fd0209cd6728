"""The demo: train a small Visual Transformer on digits, draw its attention, and measure the ops."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Required packages: name of the module and name of the distribution.
_NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "tabulate": "tabulate",
    "tqdm": "tqdm",
    "PIL": "Pillow",
}


def run(pictures: Sequence[Path], output: Path, *, quick: bool = False) -> int:
    """Run the whole demo and return the exit status: 0, or 2 for an error that the user can fix.

    Args:
        pictures: files to cluster; if empty, scikit-learn's two sample photographs.
        output: the folder for drawings and report, created if it does not exist.
        quick: a smoke test of a few seconds, whose numbers mean nothing.
    """
    for module, package in _NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            # matplotlib, for example, fails if Pillow is missing.
            missing = _NEEDED.get(error.name or module, package)
            return _refuse(f'the demo needs {missing}: pip install ".[demo]" in vt_fast\'s folder ({error})')
    # Not earlier: these import the packages checked above.
    from demo.pictures import PictureError, load_all
    from demo.story import tell

    try:
        # Before the training, so that a missing file is reported at once.
        loaded = load_all(pictures)
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output, prefix=".vt_fast_"):
            pass  # the folder may exist and not be writable
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
