"""Runs whose times are drawn at random, with seeds, as processes on a machine would have them."""

import math
import random

from benchmarks import cases, records
from benchmarks.networks import records as networks
from benchmarks.networks.sides import CONVOLUTIONAL, FUSED, INFERENCE, REFERENCE, SIDES
from tests._support import standin

SHAPES = [cases.Shape(1, 1, 4**k, 16, 8) for k in range(1, 6)]
PEERS = ("eager", "folded", "sdpa", "compile folded")
# How unlike two processes are, and the rounds of one, on an idle machine.
PROCESS, ROUND = 0.03, 0.02


class Machine:
    """Draws runs: everything takes a millisecond, times the factor that is given for an entry and a cell."""

    def __init__(self, seed=0, drift=1.0, tail=True):
        self.dice, self.drift, self.tail = random.Random(seed), drift, tail

    def seconds(self, factor=1.0, rounds=9):
        centre = 1e-3 * self.drift * factor * math.exp(self.dice.gauss(0, PROCESS))
        times = [centre * math.exp(abs(self.dice.gauss(0, ROUND))) for _ in range(rounds)]
        return [*times[:-1], 3 * times[-1]] if self.tail else times

    def entry(self, name, kind, factor, on_gpu):
        found = records.Entry(name, kind, seconds=self.seconds(factor))
        if on_gpu:
            found.timed_as, found.eager_seconds = records.GRAPH, self.seconds(3 * factor, 7)
        return found

    def cell(self, op, shape, which, slow, peers, on_gpu):
        factor = slow(op, shape, which)
        entries = [self.entry("vt_fast cpu", records.OURS, factor, on_gpu)]
        entries += [self.entry(name, records.PEER, 2.0, on_gpu) for name in peers]
        floor = records.Floor(1, 1, 1000, self.seconds(rounds=6), 1000, self.seconds(rounds=6))
        threads = None if on_gpu else 1
        return records.Cell(op, shape, "fp32", "nchw", threads, which, 1000, floor, entries)

    def run(self, slow=lambda op, shape, which: 1.0, peers=PEERS, on_gpu=False, about=None):
        found = [
            self.cell(op, shape, which, slow, peers, on_gpu)
            for op in cases.OPS
            for shape in SHAPES
            for which in cases.PASSES
        ]
        about = about or standin.MACHINE | ({"gpu": standin.ABOUT} if on_gpu else {})
        return records.Run(about, standin.GPU_SETTINGS if on_gpu else standin.CPU_SETTINGS, found)


def one_cell_slower(factor):
    def slow(op, shape, which):
        return factor if (op, shape, which) == ("project", SHAPES[2], cases.BOTH) else 1.0

    return slow


def network_run(seed, factor=1.0, sides=(CONVOLUTIONAL, REFERENCE, FUSED)):
    drawn = Machine(seed)
    found = [
        networks.NetworkCell(
            "stage",
            f"ResNet-{depth}",
            8,
            "fp32",
            "nchw",
            2,
            INFERENCE,
            [networks.Side(name) for name in sides],
        )
        for depth in (18, 34, 50, 101, 152)
    ]
    for cell in found:
        for side in cell.sides:
            side.seconds = drawn.seconds(factor if side.name == FUSED else 1.0)
    settings = {"networks": True, "quick": False, "passes": [INFERENCE], "sides": list(SIDES)}
    settings |= {"dtype": ["fp32"], "layout": ["nchw"], "device": "cpu", "threads": 2}
    return networks.NetworkRun(standin.MACHINE, settings, found)
