"""A model of a call's time: bytes, and what a multiprocessor does for a tile while they move.

README.md says how far it was from measurements. A block works on one tile after another. Its own waiting, at
barriers and for products and loads that need the one before, overlaps only with other blocks of the
multiprocessor, and all of these share its units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tools.cuda.counting import Plan, Work
from tools.cuda.gpus import Gpu

# Cycles from one product to the next that adds to it, by the size of a number; of a barrier of a block; of
# one of a cluster, which waits for stores; of reading scores of another block; of a softmax; of loading what
# is multiplied first; of four or eight results that are spread over a tile; of storing four pieces.
_PRODUCT = {2: 33, 4: 6 * 20}
_BARRIER, _CLUSTER_BARRIER, _REMOTE_SCORES = 30, 1000, 200
_SOFTMAX, _FIRST_LOADS, _SPREAD, _STORE = 330, 100, 130, 50
_LAUNCH, _SECOND_LAUNCH = 2.5e-6, 2e-6
# Instructions for each that is counted, where the compiler's code does not tell.
_EACH = 6
# Clusters that are done leave their bandwidth to others, by so much.
_LEFT_TO_OTHERS = 0.5


class Steps(NamedTuple):
    """What a kernel does with a tile.

    Args:
        reads: maps read.
        writes: maps written.
        phases: rounds of scores, softmax and pooling, with two barriers each.
        scores: products of the whole tile with rows that come one after the other.
        spreads: products that give a whole tile.
        rows: small operands and results of a sample, in multiples of L C elements.
        floats: those of them that are float, the same way.
    """

    reads: int
    writes: int
    phases: int
    scores: int
    spreads: int
    rows: int
    floats: int

    @property
    def maps(self) -> int:
        """Maps read or written."""
        return self.reads + self.writes


STEPS = {
    "tokenize": Steps(1, 0, 1, 1, 0, 1, 0),
    "project": Steps(1, 1, 1, 1, 1, 2, 0),
    "project_tokenize": Steps(1, 1, 2, 2, 1, 3, 0),
    "tokenize_backward": Steps(1, 1, 1, 1, 1, 1, 1),
    "project_backward": Steps(2, 1, 1, 2, 1, 4, 0),
    "project_tokenize_backward": Steps(2, 1, 3, 3, 3, 5, 1),
}


class Prediction(NamedTuple):
    """Seconds in all and of its terms, and the least that the maps' bytes take.

    ``busy`` and ``waiting`` are of the multiprocessor with most tiles. ``unit`` is the busiest of its units,
    and ``bound`` what takes longest in all.
    """

    total: float
    memory: float
    busy: float
    waiting: float
    parts: float
    floor: float
    unit: str
    bound: str


def predict(
    gpu: Gpu, op: str, sizes: tuple[int, int, int, int], itemsize: int, plan: Plan, code: tuple[int, int]
) -> Prediction:
    """The time of a call of B, N, C and L.

    Args:
        code: ``tile`` and ``counted`` of the kernel's row in the table of resources.
    """
    batch, pixels, channels, tokens = sizes
    steps = STEPS[op]
    maps = steps.maps * batch * pixels * channels * itemsize
    small = batch * tokens * channels * (steps.rows * itemsize + steps.floats * 4)
    tiles = batch * plan.tiles_per_sample
    each = math.ceil(tiles // plan.unit / plan.clusters) * plan.unit
    load = each * plan.clusters / tiles
    processors = min(gpu.processors, plan.clusters * plan.ranks)
    blocks = min(plan.blocks_each, math.ceil(plan.clusters * plan.ranks / gpu.processors))
    flow = processors * blocks * in_flight(plan, steps, itemsize) * gpu.clock / gpu.latency
    memory = (maps + small) / min(gpu.memory, flow) * (1 + (load - 1) * _LEFT_TO_OTHERS)

    shortest, counted = (plan.warps * count for count in code)
    terms = units(gpu, plan.tile, shortest + _EACH * (plan.tile.counted - counted))
    unit = max(terms, key=lambda name: terms[name])
    samples = math.ceil(each / plan.tiles_per_sample) + (plan.unit == 1 and batch > 1)
    waiting = chain(plan, steps, itemsize) * each + gpu.latency * samples
    of_sample = max(units(gpu, plan.sample, _EACH * plan.sample.counted).values())
    busy = terms[unit] * each + of_sample * samples
    compute = max(waiting + busy, busy * blocks) / gpu.clock

    parts = 0.0
    if plan.part_floats:
        left = min(2 * plan.clusters, plan.clusters + batch)
        parts = 2 * 4 * plan.part_floats * left / gpu.cache + _SECOND_LAUNCH
    return Prediction(
        total=max(memory, compute) + _LAUNCH + parts,
        memory=memory,
        busy=busy * blocks / gpu.clock,
        waiting=waiting / gpu.clock,
        parts=parts,
        floor=maps / gpu.memory,
        unit=unit,
        bound="memory" if memory >= compute else "waiting" if waiting > busy * blocks else unit,
    )


def in_flight(plan: Plan, steps: Steps, itemsize: int) -> int:
    """Bytes that a block has under way."""
    tile = plan.warps * 16 * (plan.kernel.mt or 0) * (plan.kernel.tp or 0) * itemsize
    return (plan.stages - 1) * steps.reads * tile


def units(gpu: Gpu, work: Work, instructions: float) -> dict[str, float]:
    """Cycles of the units of a multiprocessor."""
    return {
        "instructions": instructions / 4,
        "shared memory": float(work.passes),
        "products": work.products * gpu.product_cycles,
    }


def chain(plan: Plan, steps: Steps, itemsize: int) -> float:
    """Cycles in which a block waits for its own results, in a tile."""
    mt, tp = plan.kernel.mt or 0, plan.kernel.tp or 0
    of_scores = steps.scores * mt * _PRODUCT[itemsize]
    of_pools = steps.phases * tp // 16 * _PRODUCT[itemsize]
    barrier = _BARRIER if plan.ranks == 1 else _CLUSTER_BARRIER + _REMOTE_SCORES * (plan.ranks - 1)
    of_phases = steps.phases * (2 * _FIRST_LOADS + 2 * barrier + _SOFTMAX)
    results = mt * tp // 8
    of_spreads = steps.spreads * math.ceil(results / (8 if plan.kernel.kernel == "forward" else 4)) * _SPREAD
    width = 4 if plan.kernel.layout == "shifted" else 16
    of_stores = steps.writes * math.ceil(16 * mt * tp * itemsize / (32 * width) / 4) * _STORE
    return of_scores + of_pools + of_phases + of_spreads + of_stores
