"""The paper's own counts, from constructor arguments alone, by torch's counter and by fvcore."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from vt_fast import models
from vt_fast.models.counting import fvcore_macs, macs, parameters
from vt_fast.models.paper_rows import IMAGE, ROWS
from vt_fast.nn import ClusteringTokenizer

FITTED = [name for name, row in ROWS.items() if row.fit_macs is not None]


def test_every_row_of_both_depths_is_there():
    assert len(FITTED) == 22
    assert {row.depth for row in ROWS.values() if row.options is not None} == {18, 34, 50, 101}
    assert {row.depth for row in ROWS.values() if row.options is None} == {18, 34, 50, 101}


@pytest.mark.parametrize("name", FITTED)
def test_counts_of_the_fit(name):
    """Within 0.1 %, parameters within the last digit of the fit, and within 0.75 M MACs of the print."""
    row = ROWS[name]
    found_macs, found_parameters = row.count()
    assert found_macs == pytest.approx(row.fit_macs, rel=1e-3)
    assert found_parameters == pytest.approx(row.fit_parameters, rel=1e-3)
    assert found_parameters == pytest.approx(row.fit_parameters, abs=0.006)
    # The last number is what a misprint must have meant.
    printed = [float(number) for number in re.findall(r"\d+", row.printed_macs)]
    assert min(abs(found_macs - number) for number in printed) < 0.75
    # The paper rounds some parameters and cuts others off.
    assert -0.05 <= found_parameters - float(row.printed_parameters) < 0.1


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.options is None])
def test_counts_of_plain_resnets(name):
    row = ROWS[name]
    found_macs, found_parameters = row.count()
    assert found_macs == pytest.approx(float(row.printed_macs), abs=0.75)
    assert found_parameters == pytest.approx(float(row.printed_parameters), abs=0.1)


@pytest.mark.parametrize(("depth", "expected"), [(50, (3678.95, 27.31)), (101, (7391.17, 46.25))])
def test_our_own_counts_where_the_print_is_not_met(depth, expected):
    row = ROWS[f"VT-R{depth}, filter + recurrent"]
    assert row.fit_macs is None
    assert row.count() == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith(("VT-R18", "R18"))])
def test_fvcore_agrees(name):
    pytest.importorskip("fvcore")
    row = ROWS[name]
    assert fvcore_macs(row.build(), torch.zeros(1, 3, IMAGE, IMAGE)) == round(row.count()[0] * 1e6)


@pytest.mark.parametrize("name", [name for name in FITTED if name.startswith("VT-R18")])
def test_folded_is_less_work(name):
    """The same parameters, and fewer multiply-accumulates by both counters; ours are counted as ops."""
    row, image = ROWS[name], torch.zeros(1, 3, IMAGE, IMAGE)
    written, folded = row.build(), row.build(backend="torch")
    assert parameters(written) == parameters(folded)
    pytest.importorskip("fvcore")
    # fvcore reads its count of an einsum from a text of some digits.
    assert fvcore_macs(folded, image) == pytest.approx(macs(folded, image), rel=1e-6)
    assert macs(folded, image) < macs(written, image)


def test_the_default_network_has_what_the_counts_leave_out():
    """BatchNorm on the tokens and biases: no multiply-accumulate, and parameters of their own."""
    with torch.device("meta"):
        image = torch.zeros(1, 3, IMAGE, IMAGE)
        default, counted = models.vt_resnet18(backend="reference"), ROWS["VT-R18, filter + recurrent"].build()
    assert macs(default, image) == macs(counted, image)
    extra = dict(default.named_parameters()).keys() - dict(counted.named_parameters()).keys()
    assert extra
    assert all(name.endswith(("bias", "norm.weight")) for name in extra)
    assert parameters(default, batch_norm=True) - parameters(counted, batch_norm=True) == sum(
        value.numel() for name, value in default.named_parameters() if name in extra
    )


def test_counting_changes_nothing():
    model = models.VTResNet(
        trunk=nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16)),
        tokenizer="clustering",
        token_channels=32,
    )
    model.trunk.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert macs(model, torch.randn(1, 3, 32, 32)) > 0
    assert model.training
    assert not model.trunk.training
    tokenizers = [part for part in model.modules() if isinstance(part, ClusteringTokenizer)]
    assert [part.iterations for part in tokenizers] == [10]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_parameters_with_and_without_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
    assert parameters(model) == 8 * 27 + 8 + 16
    assert parameters(model, batch_norm=True) == parameters(model) + 16
