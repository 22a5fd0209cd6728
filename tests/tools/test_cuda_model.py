"""Plans and work of the CUDA kernels from their own source, the model of their time, and its table."""

import itertools

import pytest

from benchmarks import results
from tools.cuda import counting, predictions, resources
from tools.cuda.__main__ import main
from tools.cuda.counting import Plan, Work
from tools.cuda.gpus import GPUS
from tools.cuda.machine_code import LAYOUTS, Kernel
from tools.cuda.model import STEPS, chain, in_flight, predict, units

GPU = GPUS["90a"]
REGISTERS = {
    Kernel(kind, layout, mt, nt, tp): 128
    for kind, layout, mt, nt, tp in itertools.product(
        ("forward", "backward"), LAYOUTS, (1, 2, 4, 8), (2, 4, 8), (16, 32)
    )
}


@pytest.fixture(scope="module")
def tokenize():
    """Plans of tokenize in bf16."""
    return lambda *calls, gpu=GPU, registers=REGISTERS: counting.plans(
        "tokenize", "Bf16", gpu, registers, calls
    )


def test_a_plan_and_the_work_of_a_tile(tokenize):
    (plan,) = tokenize(("last", 8, 60800, 256, 8))
    mt, nt, tp = plan.kernel.mt, plan.kernel.nt, plan.kernel.tp
    assert plan.kernel == Kernel("forward", "last", mt, 2, tp)
    assert plan.warps * plan.ranks * 16 * mt >= 256
    assert plan.shared_bytes <= GPU.block_shared_bytes
    assert plan.blocks_each * (plan.shared_bytes + 1024) <= GPU.shared_bytes
    assert plan.clusters == plan.blocks_each * GPU.processors
    assert plan.tiles_per_sample == -(-60800 // tp)
    assert plan.unit == 1
    assert plan.part_floats == 16 * (256 + 3), "samples are split"
    # Scores of a tile, and what is pooled.
    assert plan.tile.products == plan.warps * 2 * mt * (tp // 16) * nt
    # A tile is copied once and read twice, and there is more than that.
    assert plan.tile.passes > 3 * 256 * tp * 2 // 128
    assert plan.sample.products == 0


def test_layouts_of_the_map_change_the_work(tokenize):
    last, first, shifted = tokenize(*((layout, 8, 12544, 256, 16) for layout in LAYOUTS))
    assert last.tile.products == first.tile.products == shifted.tile.products
    assert first.tile.passes < shifted.tile.passes
    aligned, other = tokenize(("first", 8, 12544, 256, 16), ("first", 8, 12548, 256, 16))
    assert other.tile.counted > aligned.tile.counted, "copies of 8 bytes"


def test_what_a_gpu_has_changes_the_plan(tokenize):
    call = ("last", 8, 12544, 256, 16)
    usual, many = tokenize(call), tokenize(call, registers=dict.fromkeys(REGISTERS, 255))
    assert usual[0].blocks_each > many[0].blocks_each == 1
    assert tokenize(call, gpu=GPUS["80"])[0].clusters % GPUS["80"].processors == 0
    assert tokenize(("last", 8, 49, 2048, 64))[0].ranks > 1
    assert tokenize(("last", 8, 49, 2048, 64), gpu=GPUS["80"]) == [None]


def plan(**changes):
    usual = Plan(
        Kernel("forward", "last", 8, 2, 16),
        warps=8,
        ranks=1,
        stages=4,
        shared_bytes=200 << 10,
        blocks_each=1,
        clusters=132,
        unit=1,
        tiles_per_sample=196,
        part_floats=0,
        tile=Work(counted=816, products=256, passes=1392),
        sample=Work(counted=1115, products=0, passes=1299),
    )
    return usual._replace(**changes)


def predicted(op="project", sizes=(32, 3136, 1024, 16), itemsize=2, code=(500, 100), gpu=GPU, **changes):
    return predict(gpu, op, sizes, itemsize, plan(**changes), code)


def test_the_model_ranks_what_is_slower():
    usual = predicted()
    assert usual.bound == "memory"
    assert usual.total > usual.memory >= usual.floor == 2 * 32 * 3136 * 1024 * 2 / GPU.memory
    slow = predicted(tile=Work(816, 256, 13920))
    assert (slow.bound, slow.unit) == ("shared memory", "shared memory")
    assert slow.total > usual.total
    assert predicted(code=(5000, 100)).unit == "instructions"
    assert predicted(tile=Work(816, 5000, 1392)).unit == "products"
    assert predicted(part_floats=16 << 10).parts > 0
    assert predicted(gpu=GPUS["80"]).total > usual.total > predicted(gpu=GPUS["100"]).total


def test_waiting_overlaps_with_other_blocks_alone():
    small = Kernel("forward", "last", 8, 2, 1)
    alone = predicted(tile=Work(100, 10, 100), stages=4, kernel=small, tiles_per_sample=3136)
    assert alone.bound == "waiting"
    assert chain(plan(ranks=4), STEPS["project"], 2) > chain(plan(), STEPS["project"], 2)
    assert chain(plan(), STEPS["project"], 4) > chain(plan(), STEPS["project"], 2)
    assert chain(plan(), STEPS["project_tokenize"], 2) > chain(plan(), STEPS["project"], 2)
    two = predicted(blocks_each=2, clusters=264)
    assert two.waiting < predicted().waiting, "each has half of the tiles"
    assert in_flight(plan(), STEPS["project_backward"], 2) == 2 * 3 * 1024 * 16 * 2


def test_units_of_a_multiprocessor():
    assert units(GPU, Work(8, 10, 7), 40) == {"instructions": 10.0, "shared memory": 7.0, "products": 16.0}


@pytest.mark.parametrize("path", sorted(predictions.FOLDER.glob("model-*.csv")), ids=lambda path: path.stem)
def test_the_committed_tables(path):
    facts, rows = results.read(path)
    assert facts["note"] == "a model, not a measurement"
    assert tuple(rows[0]) == predictions.COLUMNS
    assert {row["op"] for row in rows} == set(STEPS)
    assert len(rows) == len(STEPS) * 2 * 2 * len(predictions.SHAPES)
    for row in rows:
        assert not row["kernel"] or float(row["total_us"]) > float(row["floor_us"])
    known = [row for row in rows if row["triton_us"]]
    assert {row["shape"] for row in known} >= {"256x196x1024x16", "8x60800x256x8"}


def test_names_of_layouts():
    assert predictions.storage("channels_last", "Bf16", 49) == "last"
    assert predictions.storage("nchw", "Bf16", 196) == "first"
    assert predictions.storage("nchw", "Bf16", 49) == "shifted"
    assert predictions.storage("nchw", "Fp32", 196) == "shifted"


def test_the_command_writes_and_prints_the_table(monkeypatch, tmp_path, capsys):
    compiled = [
        {
            "op": "tokenize",
            "dtype": "bf16",
            **kernel._asdict(),
            "registers": count,
            "tile": 500,
            "counted": 100,
        }
        for kernel, count in REGISTERS.items()
    ]
    monkeypatch.setattr(resources, "FOLDER", tmp_path)
    results.write(resources.table("90a"), {"nvcc": "13.0"}, resources.COLUMNS, compiled)
    monkeypatch.setattr(predictions, "STEPS", {"tokenize": STEPS["tokenize"]})
    monkeypatch.setattr(predictions, "TYPES", {"Bf16": 2})
    monkeypatch.setattr(predictions, "SHAPES", ((256, 196, 1024, 16), (6, 49, 65536, 64)))
    assert main(["model", "--output", str(tmp_path / "model.csv")]) == 0
    _, rows = results.read(tmp_path / "model.csv")
    assert [row["kernel"] != "" for row in rows] == [True, False, True, False], "nothing takes 65536 channels"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "A model, not a measurement."
    line = next(line for line in printed if "tokenize bf16 channels_last 256x196x1024x16" in line)
    assert rows[0]["triton_us"] in line
    with pytest.raises(SystemExit, match="2"):
        main(["model", "--arch", "70"])
    assert "`arch` must be one of 90a, got '70'" in capsys.readouterr().err
