"""DDN#4, pytorch-lifestream#132: workers of macOS (spawn) and of Python 3.14 (forkserver) get the dataset by pickle."""

import pickle
import sys
from pathlib import Path

import _with_torchvision  # noqa: F401

import vt_fast

sys.path.insert(0, str(Path(vt_fast.__file__).parents[1] / "examples"))
from recipe import data, masks, recipes

pickle.dumps(data.classification("digits", 32, recipes.Recipe()).train)  # works
try:
    pickle.dumps(masks.segmentation("digits", 32, None).train)
except (AttributeError, pickle.PicklingError) as error:
    sys.exit(f"train_segmentation.py --workers 4: {error}")
