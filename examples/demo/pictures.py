"""Loading pictures: scikit-learn's two photographs, or the user's files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# A sheet does not show more pixels.
_LONGEST_SIDE = 640
# A picture with a larger aspect ratio would be a line on a sheet.
_LONGEST_FORM = 40


class Picture(NamedTuple):
    """A loaded picture: its name and its pixels, (3, H, W) in [0, 1]."""

    name: str
    pixels: Tensor
    title: str = ""
    """Distinguishes it from another picture of the same name; empty if the name is unique."""


class PictureError(Exception):
    """The file is missing or not a picture. The message is one line and names the file."""


def load(path: Path) -> Picture:
    """Read one picture of any size and colour mode, upright, scaled to at most 640 pixels.

    Transparent parts become white. An animation gives its first frame.

    Raises:
        PictureError: the file is missing, unreadable or not a picture.
    """
    try:
        if not path.exists():
            raise PictureError(f"there is no file {path}")
        if path.is_dir():
            raise PictureError(f"{path} is a folder, not a picture")
        if not path.is_file():
            raise PictureError(f"{path} is not a regular file")  # reading a pipe would block
        with warnings.catch_warnings():
            # A huge picture is scaled down at once. Pillow still refuses decompression bombs.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if max(image.size) > _LONGEST_FORM * min(image.size):
                    size = "{} x {}".format(*image.size)
                    raise PictureError(
                        f"{path} has {size} pixels; a side may be at most {_LONGEST_FORM} times the other"
                    )
                return Picture(path.stem, _to_tensor(_upright(image)))
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{path} is not a picture that Pillow can read") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path} has too many pixels") from None
    # Decoders raise many types of errors on damaged files.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PictureError(f"{path} cannot be read as a picture: {reason}") from None


def load_all(paths: Sequence[Path]) -> list[Picture]:
    """Read all the pictures, or the two sample photographs if no path is given.

    Raises:
        PictureError: for the first file that is missing or not a picture.
    """
    if not paths:
        return samples()
    loaded = [load(path) for path in paths]
    names = [picture.name for picture in loaded]
    return [
        picture._replace(title=str(path)) if names.count(picture.name) > 1 else picture
        for path, picture in zip(paths, loaded, strict=True)
    ]


def samples() -> list[Picture]:
    """The two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_image

    return [
        Picture(name, _to_tensor(Image.fromarray(load_sample_image(f"{name}.jpg"))))
        for name in ("china", "flower")
    ]


def scaled(picture: Picture, longest: int) -> Picture:
    """The picture scaled so that its longer side is at most `longest`."""
    height, width = picture.pixels.shape[1:]
    if max(height, width) <= longest:
        return picture
    array = (picture.pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return picture._replace(pixels=_to_tensor(Image.fromarray(array), longest))


def _upright(image: Any) -> Any:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # 16- and 32-bit grey: Pillow's own conversion would clip at 255.
        values = np.asarray(image, dtype=np.float64)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        grey = np.nan_to_num((values - low) / ((high - low) or 1.0) * 255)
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_tensor(image: Any, longest: int = _LONGEST_SIDE) -> Tensor:
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
