"""The drawings of a report, on tiny made-up runs: what is drawn is what was measured."""

import numpy as np
import pytest

from tests._support.made_up import cell, network_cell, ops_run, stack_cell

pytest.importorskip("matplotlib")

from benchmarks import cases, timing
from benchmarks.reporting import bars, curves, derived, rates, roofline
from benchmarks.reporting.curves import Curves, Point


def test_spread_and_comparison():
    values = [5.0, 1.0, 2.0, 3.0, 9.0, 6.0, 8.0]
    np.testing.assert_allclose(timing.quantiles(values), np.quantile(values, [0.5, 0.2, 0.8]))
    assert timing.quantiles([2.0]) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="at least one number"):
        timing.quantiles([])
    pair = [cell(), cell(ours=0.001)]
    found = derived.compare(pair, "eager")
    assert found.ratios == pytest.approx([0.0353 / 0.0102, 0.0353 / 0.002])
    assert found.mean == pytest.approx((found.ratios[0] * found.ratios[1]) ** 0.5)
    assert derived.compare(pair, derived.BEST).ratios == pytest.approx([0.0218 / 0.0102, 0.0218 / 0.002])
    assert derived.compare(pair, "sdpa").without == {"wrong": 2}
    assert derived.compare(pair, "vt_fast torch").ratios == []  # not a peer


def test_speed_bars_are_the_geometric_means_and_name_who_has_none():
    figure = bars.speeds(ops_run([cell(), cell(layout="channels_last", ours=0.001)]))
    (panel,) = figure.axes
    widths = [bar.get_width() + bar.get_x() for bar in panel.patches]
    ratios = {"best": 0.0218, "eager": 0.0353, "folded": 0.0218}
    expected = [(value / 0.0102 * value / 0.002) ** 0.5 for value in ratios.values()]
    assert widths == pytest.approx(expected)
    lines = [line.get_xdata() for line in panel.lines if len(set(line.get_xdata())) > 1]
    assert list(lines[1]) == pytest.approx([0.0353 / 0.0102, 0.0353 / 0.002])
    texts = [text.get_text() for text in panel.texts]
    assert any("✕ wrong in 2" in text for text in texts)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["best peer", "eager", "sdpa", "folded"]


def test_roofline_has_a_point_for_each_cell_and_the_measured_ceilings():
    run = ops_run([cell(), cell(which=cases.BOTH, ours=0.002), stack_cell()])
    (panel,) = roofline.draw(run).axes
    points = [line for line in panel.lines if line.get_marker() in ("o", "D")]
    rates_ = [float(line.get_ydata()[0]) for line in points]
    assert rates_ == pytest.approx([12345678 / 0.0102, 12345678 / 0.004])
    assert [float(line.get_xdata()[0]) for line in points] == pytest.approx([12345678 / (2 * 4321)] * 2)
    texts = " ".join(text.get_text() for text in panel.texts)
    assert f"copy_ {(1 << 20) / 0.012 / 1e9:.1f} GB/s" in texts
    assert f"torch.mm {987654321 / 0.018 / 1e9:.0f} GFLOP/s" in texts
    assert max(max(line.get_ydata()) for line in panel.lines) == pytest.approx(987654321 / 0.018)


def test_memory_bars_are_the_medians_in_maps():
    (panel,) = bars.memory(ops_run([cell()])).axes
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([n / 4321 for n in (1111, 9999, 7777)])


def test_stack_points_are_speed_and_share_of_memory():
    left, right = bars.stacks(ops_run()).axes
    assert list(left.lines[0].get_xdata()) == pytest.approx([0.0353 / 0.0102])
    assert list(right.lines[0].get_xdata()) == pytest.approx([1111 / 9999])


def test_what_was_not_measured_is_not_drawn():
    nothing = ops_run([])
    assert [draw(nothing) for draw in (bars.speeds, bars.memory, bars.stacks, roofline.draw)] == [None] * 4
    assert rates.draw([], "images/s", rates.rate) is None
    assert curves.draw([]) is None


def test_rates_are_images_over_seconds_and_failures_are_named():
    (panel,) = rates.draw([network_cell()], "images/s", rates.rate).axes
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([3 / 0.0633, 3 / 0.0437])
    assert any("✕ RuntimeError: out of <luck>" in text.get_text() for text in panel.texts)


def test_who_falls_over_is_marked_and_not_left_out():
    xs = [196, 784, 3136]
    series = {
        "ours": [Point(1.0), Point(2.0, low=1.5, high=2.5), Point(3.0)],
        "eager": [Point(2.0), Point(None, "out of memory"), Point(None, "out of memory")],
        "compile eager": [Point(None, "not compiled"), Point(4.0), Point(5.0)],
        "flex": [Point(None, "unsupported")] * 3,
    }
    (panel,) = curves.draw([Curves("tokenize", "N", "ms", xs, series)]).axes
    crosses = [list(line.get_xdata()) for line in panel.lines if line.get_marker() == "x"]
    assert crosses == [[784, 3136], [196], xs]
    assert [text.get_text() for text in panel.texts] == ["out of memory", "not compiled", "unsupported"]
    known = [list(line.get_ydata()) for line in panel.lines if line.get_marker() == "o"]
    assert known == [[1.0, 2.0, 3.0], [2.0], [4.0, 5.0], []]
    with pytest.raises(ValueError, match="must have 3 points, got 1"):
        curves.draw([Curves("", "", "", xs, {"ours": [Point(1.0)]})])
    with pytest.raises(ValueError, match="must have a reason"):
        curves.draw([Curves("", "", "", [1.0], {"ours": [Point(None)]})])
