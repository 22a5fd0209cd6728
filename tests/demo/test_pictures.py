"""Any picture can be loaded; anything else is a one-line error and exit status 2 before training."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

from demo import pictures  # noqa: E402
from demo.pictures import PictureError, load  # noqa: E402
from vt_fast.__main__ import main  # noqa: E402


def ramp(height=20, width=30):
    """A picture whose left side is dark and whose top is green."""
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[..., 0] = np.linspace(0, 255, width)
    array[: height // 2, :, 1] = 255
    return Image.fromarray(array)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"),
        ("L", "png"),
        ("RGBA", "png"),
        ("P", "gif"),
        ("1", "png"),
        ("LA", "png"),
        ("CMYK", "jpg"),
    ],
)
def test_every_colour_mode_becomes_three_channels_in_unit_range(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    ramp().convert(mode).save(path)
    picture = load(path)
    assert picture.name == "a"
    assert picture.pixels.shape == (3, 20, 30)
    assert picture.pixels.dtype == torch.float32
    assert 0 <= picture.pixels.min() < 0.5 < picture.pixels.max() <= 1


def test_colours_are_kept(tmp_path):
    ramp().save(tmp_path / "a.png")
    pixels = load(tmp_path / "a.png").pixels
    torch.testing.assert_close(pixels[1, 0], torch.ones(30))
    torch.testing.assert_close(pixels[1, -1], torch.zeros(30))
    assert (pixels[0].diff(dim=1) >= 0).all()


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path):
    array = np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.uint16)
    Image.fromarray(array).save(tmp_path / "a.png")
    pixels = load(tmp_path / "a.png").pixels
    assert abs(float(pixels.mean()) - 0.5) < 0.01


def test_transparent_parts_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (load(tmp_path / "a.png").pixels == 1).all()


def test_exif_orientation_is_followed(tmp_path):
    image = ramp()
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = load(tmp_path / "a.jpg").pixels
    assert pixels.shape == (3, 30, 20)
    assert pixels[1, :, -1].mean() > 0.9  # what was the top is now on the right


@pytest.mark.parametrize(
    ("size", "expected"), [((3000, 100), (640, 21)), ((100, 1280), (50, 640)), ((1, 1), (1, 1))]
)
def test_large_pictures_are_scaled_down_and_small_ones_kept(tmp_path, size, expected):
    Image.new("RGB", size, "blue").save(tmp_path / "a.png")
    assert load(tmp_path / "a.png").pixels.shape == (3, *expected[::-1])


def bad_files(folder):
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    ramp(200, 300).save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    Image.new("RGB", (3000, 2)).save(folder / "line.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "there is no file"),
        ("text.png", "is not a picture"),
        ("empty.jpg", "is not a picture"),
        ("cut.png", "cannot be read as a picture"),
        ("folder.png", "is a folder"),
        ("pipe.png", "is not a regular file"),
        ("line.png", "has 3000 x 2 pixels"),
        ("x" * 300, "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_picture_is_one_line_and_status_2(tmp_path, capsys, monkeypatch, name, message):
    bad_files(tmp_path)
    path = tmp_path / name
    with pytest.raises(PictureError, match=message):
        load(path)

    def trained(*arguments, **options):
        raise RuntimeError("trained before the files were read")

    monkeypatch.setattr("demo.story.tell", trained)
    output = tmp_path / "out"
    assert main(["demo", str(tmp_path / "whole.png"), str(path), "--output", str(output)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert str(path) in printed.err
    assert not output.exists()


def test_output_that_cannot_be_a_folder_is_one_line_and_status_2(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("")
    assert main(["demo", "--quick", "--output", str(taken)]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write to the folder {taken}")


def test_samples_are_the_two_photographs():
    names = [(picture.name, tuple(picture.pixels.shape)) for picture in pictures.samples()]
    assert names == [("china", (3, 427, 640)), ("flower", (3, 427, 640))]


def test_scaled_keeps_the_aspect_ratio():
    picture = pictures.Picture("a", torch.rand(3, 200, 100))
    assert pictures.scaled(picture, 50).pixels.shape == (3, 50, 25)
    assert pictures.scaled(picture, 200) is picture
