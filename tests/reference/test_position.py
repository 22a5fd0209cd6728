"""Position codes against hand-computed values, a convolution loop, and the table A^T E they fold into."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vt_fast.reference.position import conv_position_code, linear_position_code, resize_matrix

lengths = st.integers(1, 17)
SIZES = [
    ((6, 6), 4),
    ((5, 7), 4),
    ((3, 2), 5),
    ((4, 4), 4),
    ((14, 9), 1),
]  # down, odd, up, same, to one pixel


@settings(deadline=None, max_examples=100)
@given(height=lengths, width=lengths, new_height=lengths, new_width=lengths)
def test_resize_matrices_equal_interpolate(maker, close, height, width, new_height, new_width):
    image = maker(height * width).tensor(1, 1, height, width)
    rows = resize_matrix(height, new_height, dtype=torch.float64)
    columns = resize_matrix(width, new_width, dtype=torch.float64)
    expected = F.interpolate(image, size=(new_height, new_width), mode="bilinear", align_corners=False)
    close(rows @ image[0, 0] @ columns.T, expected[0, 0])


@settings(deadline=None, max_examples=50)
@given(source=lengths, target=lengths)
def test_resize_rows_are_weights(close, source, target):
    matrix = resize_matrix(source, target, dtype=torch.float64)
    assert matrix.shape == (target, source)
    assert (matrix >= 0).all()
    assert ((matrix > 0).sum(dim=1) <= 2).all()
    close(matrix.sum(dim=1), torch.ones(target))


def test_resize_hand_computed(close):
    close(resize_matrix(2, 4), [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    close(resize_matrix(3, 2), [[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]])
    close(resize_matrix(5, 5), torch.eye(5))
    close(resize_matrix(3, 1), [[0.0, 1.0, 0.0]])


def test_resize_matrix_has_the_dtype_asked_for():
    assert resize_matrix(3, 2).dtype == torch.get_default_dtype()
    assert resize_matrix(3, 2, torch.bfloat16).dtype == torch.bfloat16
    assert resize_matrix(3, 2, device="meta").device.type == "meta"


def test_linear_code_hand_computed(close):
    attention = torch.arange(16, dtype=torch.float64).view(1, 16, 1)  # 4 x 4 pixels, one token
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    # To 2 x 2: the means 2.5, 4.5, 10.5, 12.5 of the quarters.
    close(linear_position_code(attention, (4, 4), 2, weight), [[[15.0, 17.0]]])


@pytest.mark.parametrize(("size", "grid"), SIZES)
def test_linear_code_is_a_pooled_table(make, close, size, grid):
    pixels = size[0] * size[1]
    attention, weight = make.tensor(2, pixels, 3), make.tensor(grid * grid, 6)
    down = torch.kron(
        resize_matrix(size[0], grid, dtype=torch.float64), resize_matrix(size[1], grid, dtype=torch.float64)
    )
    table = down.T @ weight
    close(linear_position_code(attention, size, grid, weight), attention.transpose(1, 2) @ table)


def kernels(make, count):
    widths = [1, 2, 3][: count + 1]
    convolutions = [make.tensor(out, width, 3, 3) for width, out in itertools.pairwise(widths)]
    return convolutions, make.tensor(1, widths[-1], 1, 1)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize(("size", "grid"), SIZES)
def test_conv_code_is_a_pooled_table(make, close, size, grid, count):
    pixels, side = size[0] * size[1], grid
    for _ in range(count):
        side = (side + 1) // 2
    convolutions, mix = kernels(make, count)
    attention, weight = make.tensor(2, pixels, 3), make.tensor(side * side, 6)
    each_pixel = torch.eye(pixels, dtype=torch.float64).unsqueeze(0)  # pixel n as the map of "token" n
    table = conv_position_code(each_pixel, size, grid, convolutions, mix, weight)[0]
    code = conv_position_code(attention, size, grid, convolutions, mix, weight)
    assert code.shape == (2, 3, 6)
    close(code, attention.transpose(1, 2) @ table)


def test_conv_code_against_a_loop(make, close):
    attention, weight = make.tensor(2, 24, 3), make.tensor(4, 5)
    (kernel,), mix = kernels(make, 1)
    code = conv_position_code(attention, (4, 6), 4, [kernel], mix, weight)
    rows, columns = resize_matrix(4, 4, dtype=torch.float64), resize_matrix(6, 4, dtype=torch.float64)
    for b in range(2):
        for token in range(3):
            image = rows @ attention[b, :, token].view(4, 6) @ columns.T
            padded = F.pad(image, (1, 1, 1, 1))
            numbers = [
                sum(mix[0, c, 0, 0] * (kernel[c, 0] * padded[y : y + 3, x : x + 3]).sum() for c in range(2))
                for y in (0, 2)
                for x in (0, 2)
            ]
            close(code[b, token], torch.stack(numbers) @ weight)


def test_conv_code_of_the_paper_has_49_numbers(make):
    kernel, mix = make.tensor(4, 1, 3, 3), make.tensor(1, 4, 1, 1)
    code = conv_position_code(make.tensor(1, 196, 2), (14, 14), 14, [kernel], mix, make.tensor(49, 3))
    assert code.shape == (1, 2, 3)


def test_codes_follow_their_tokens(make, close):
    attention, order = make.tensor(2, 24, 5), make.permutation(5)
    convolutions, mix = kernels(make, 1)
    weight = make.tensor(4, 3)
    code = conv_position_code(attention, (4, 6), 4, convolutions, mix, weight)
    close(conv_position_code(attention[:, :, order], (4, 6), 4, convolutions, mix, weight), code[:, order])
