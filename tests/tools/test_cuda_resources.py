"""Parsing what ptxas and cuobjdump print, the rules for the kernels, and the check of the table."""

import shutil

import pytest

from benchmarks import results
from native_build import cuda
from tools.cuda import machine_code, objects, resources
from tools.cuda.__main__ import main
from tools.cuda.machine_code import Facts, Kernel

WALK = "_ZN2vt4cuda43_GLOBAL__N__28e57ce3_10_kernels_cu_cdaf843a12start_kernelINS0_7ForwardINS_4Bf16ELNS_6LayoutE1ELi4ELi8ELi16ELb0ELb1EEEEEvNS0_4CallE"  # noqa: E501
SMALL = "_ZN2vt4cuda43_GLOBAL__N__28e57ce3_10_kernels_cu_cdaf843a18start_small_kernelINS0_9SumPixelsINS_4Bf16EEEEEvNS0_4CallE"  # noqa: E501
USAGE = f"""
Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Common:
  GLOBAL:0
 Function {WALK}:
  REG:255 STACK:80 SHARED:1024 LOCAL:0 CONSTANT[0]:1112 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function {SMALL}:
  REG:32 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:1112 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
# Of real kernels, shortened: the loop over tiles has a branch past three instructions and a loop in it.
CODE = f"""
\tcode for sm_90a
\t\tFunction : {WALK}
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                    /* 0x00000a00ff017b82 */
                                                                             /* 0x000ff00000000800 */
        /*0010*/                   STL [R1+0xc], R134 ;                      /* 0x00000c8601007387 */
        /*0020*/               @P0 STL.64 [R1+0x10], R12 ;                   /* 0x00004c0c01007387 */
        /*0030*/              @!PT LDS RZ, [RZ] ;                            /* 0x00000000ff007984 */
        /*0040*/                   LDGSTS.E.BYPASS.LTC128B.128 [R7], desc[UR26][R18.64], P5 ;  /* 0x0 */
        /*0050*/              @!P0 BRA 0x480 ;                               /* 0x0000000000008947 */
        /*0060*/                   LDGSTS.E.LTC128B.64 [R93], desc[UR26][R88.64], P3 ;  /* 0x0 */
        /*0070*/                   LDSM.16.M88.4 R4, [R9+UR5] ;              /* 0x000000050904783b */
        /*0080*/                   HMMA.16816.F32.BF16 R8, R4, R12, RZ ;     /* 0x0000000c0408723c */
        /*0090*/                   STS.U16 [R3+UR4], R5 ;                    /* 0x0000000503007988 */
        /*00a0*/               @P3 BRA 0xe0 ;                                /* 0x0000000400008947 */
        /*00b0*/                   LDS R2, [R4] ;                            /* 0x0000000004027984 */
        /*00c0*/                   FADD R2, R2, R3 ;                         /* 0x0000000302027221 */
        /*00d0*/                   BRA 0xe0 ;                                /* 0x0000000400007947 */
        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;             /* 0x0000000000007b1d */
        /*00f0*/                   LDS.64 R2, [R4+0x10] ;                    /* 0x0000100004027984 */
        /*0100*/                   SHFL.BFLY PT, R15, R14, 0x10, 0x1f ;      /* 0x0e001f000e0f7f89 */
        /*0110*/              @!P1 BRA 0xf0 ;                                /* 0xfffffffc00f49947 */
        /*0120*/                   HMMA.16816.F32.BF16 R8, R4, R14, R8 ;     /* 0x0000000e0408723c */
        /*0130*/                   LDG.E.U8 R2, desc[UR26][R2.64] ;          /* 0x0000001a02027981 */
        /*0140*/               @P2 STG.E desc[UR26][R2.64], R5 ;             /* 0x0000000502002986 */
        /*0150*/                   STG.E.128 desc[UR26][R2.64], R4 ;         /* 0x0000000402007986 */
        /*0160*/              @!P0 BRA 0x60 ;                                /* 0xfffffffc00c88947 */
        /*0170*/                   LDL R2, [R1+0xc] ;                        /* 0x00000c0001027983 */
        /*0180*/                   EXIT ;                                    /* 0x000000000000794d */
        /*0190*/                   BRA 0x190;                                /* 0xfffffffc00fc7947 */
        /*01a0*/                   NOP;                                      /* 0x0000000000007918 */
\t\t..........
\t\tFunction : {SMALL}
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDG.E.U16 R2, desc[UR4][R2.64] ;          /* 0x0000000402027981 */
        /*0010*/                   LDG.E R3, desc[UR4][R2.64] ;              /* 0x0000000402037981 */
        /*0020*/                   EXIT ;                                    /* 0x000000000000794d */
"""


def test_facts_of_recorded_output():
    found = machine_code.parse(USAGE, CODE.splitlines())
    walk, small = Kernel("forward", "first", 4, 8, 16), Kernel("sum_pixels")
    assert list(found) == [walk, small]
    assert found[walk] == Facts(
        registers=255,
        stack=80,
        spills=12,
        instructions=25,
        tile=10,
        counted=8,
        products=2,
        copies="16x1 8x1",
        loads="1x1",
        stores="16x1 4x1",
        matrix_loads=1,
        shared_loads="8x1 4x1",
        shared_stores="2x1",
        barriers=1,
        shuffles=1,
    )
    assert found[small][:8] == (32, 0, 0, 3, 0, 0, 0, "")
    assert machine_code.widths(found[small].loads) == {4: 1, 2: 1}


def test_a_product_that_is_reached_by_a_jump_back():
    """Its tile has no way without one: all instructions up to the last product count."""
    jumps = CODE.replace("@P3 BRA 0xe0 ;  ", "BRA 0x170 ;     ", 1)
    walk = Kernel("forward", "first", 4, 8, 16)
    found = machine_code.parse(USAGE, jumps.splitlines())[walk]
    assert (found.tile, found.products) == (13, 2)


def test_names_of_kernels():
    name = "void vt::cuda::(anonymous namespace)::{}(vt::cuda::Call)"
    walk = "start_kernel<vt::cuda::Backward<float, (vt::Layout)2, 2, 4, 16, true, true> >"
    assert machine_code.kernel_of(name.format(walk)) == Kernel("backward", "shifted", 2, 4, 16)
    for arguments, expected in {
        "SumPixels<float>": "sum_pixels",
        "CombineTokens<float, 1>": "combine_tokens_1",
        "CombineRows<vt::Fp16, true, false, false, 4>": "combine_rows_4",
        "CombineRows<vt::Fp16, true, false, true, 4>": "combine_rows_shared_4",
    }.items():
        small = f"start_small_kernel<vt::cuda::{arguments} >"
        assert machine_code.kernel_of(name.format(small)) == Kernel(expected)
    with pytest.raises(ValueError, match="must be a kernel of csrc/cuda, got 'main'"):
        machine_code.kernel_of("main")


def row(**changes):
    facts = dict.fromkeys(Facts._fields, 0) | {"copies": "16x8", "loads": "2x1", "products": 4}
    kernel = Kernel("forward", "last", 8, 4, 16)._asdict()
    return {"op": "tokenize", "dtype": "bf16", **kernel, **facts, **changes}


LABEL = "tokenize bf16 forward last MT=8 NT=4 TP=16"


SPILLS = "spills: {} bytes of stack, where kernels for at most 32 rows may have 128."


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"registers": 255}, None),
        ({"stack": 128, "spills": 120}, None),
        ({"stack": 136, "spills": 120}, SPILLS.format(136)),
        ({"nt": "4", "stack": "136"}, SPILLS.format(136)),
        ({"nt": 8, "stack": 136}, None),
        ({"nt": "8", "stack": "136"}, None),
        ({"copies": "16x8 8x1"}, "copies 8 bytes at a time."),
        ({"copies": ""}, "does not copy 16 bytes at a time."),
        ({"layout": "first", "copies": "16x8 8x1"}, None),
        ({"layout": "first", "copies": "16x8 4x1"}, "copies 4 bytes at a time."),
        ({"products": 0}, "uses no tensor cores."),
        ({"layout": "", "mt": None, "nt": None, "tp": None, "copies": "", "products": 0}, None),
        ({"layout": "", "mt": None, "nt": None, "tp": None, "stack": 136}, SPILLS.format(136)),
    ],
)
def test_the_rules(changes, sentence):
    broken = row(**changes)
    expected = [] if sentence is None else [f"{resources.label(broken)} {sentence}"]
    assert resources.faults([broken]) == expected


def test_the_comparison_with_the_table():
    assert resources.differences([row()], [row(instructions=9, tile=5)]) == []
    assert resources.differences([row()], [row(copies="16x7"), row(op="project")]) == [
        f"{LABEL}: copies 16x8, in the table 16x7."
    ]
    assert resources.differences([row(registers=8, loads="")], [{**row(), "registers": "9"}]) == [
        f"{LABEL}: registers 8, in the table 9.",
        f"{LABEL}: loads none, in the table 2x1.",
    ]
    assert resources.differences([row(nt=2)], [row()]) == [
        f"{LABEL.replace('NT=4', 'NT=2')} is missing in the table."
    ]


@pytest.mark.parametrize("path", sorted(resources.FOLDER.glob("resources-*.csv")), ids=lambda path: path.stem)
def test_the_committed_tables(path):
    facts, rows = results.read(path)
    assert facts["nvcc"]
    assert tuple(rows[0]) == resources.COLUMNS
    assert len({resources.label(row) for row in rows}) == len(rows)
    assert resources.faults(rows) == []
    assert {row["op"] for row in rows} == set(cuda.OPS)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Recorded output in place of an object, and a table of its own."""
    monkeypatch.setattr(resources, "FOLDER", tmp_path)
    monkeypatch.setattr(resources, "objects", lambda architecture, kernels: [tmp_path] * len(kernels))
    monkeypatch.setattr(resources, "ProcessPoolExecutor", InThisProcess)
    output = {"-res-usage": USAGE, "-sass": CODE}
    monkeypatch.setattr(machine_code, "_output", lambda path, architecture, option: output[option])
    monkeypatch.setattr(
        resources, "tools", lambda architecture: cuda.CudaToolchain("nvcc", (13, 0), tmp_path, tmp_path, [])
    )
    return output


class InThisProcess:
    """A pool without processes, so that a test's replacements are seen."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    map = staticmethod(map)


def test_the_command_writes_a_table_and_checks_against_it(compiled, tmp_path, capsys):
    part = ["resources", "--arch", "80", "--ops", "project", "--types", "Fp16"]
    assert main(part) == 0
    facts, rows = results.read(tmp_path / "resources-sm_80.csv")
    assert facts == {"nvcc": "13.0"}
    assert [(row["op"], row["dtype"], row["kernel"]) for row in rows] == [
        ("project", "fp16", "forward"),
        ("project", "fp16", "sum_pixels"),
    ]
    check = ["resources", "--arch", "80", "--check"]
    assert main(check) == 0
    assert "sm_80: 2 kernels, 0 faults" in capsys.readouterr().out
    compiled["-res-usage"] = USAGE.replace("REG:255", "REG:254")
    assert main(check) == 1
    printed = capsys.readouterr().out
    assert "FAULT: project fp16 forward first MT=4 NT=8 TP=16: registers 254, in the table 255.\n" in printed
    results.write(tmp_path / "resources-sm_80.csv", {"nvcc": "12.9"}, resources.COLUMNS, rows)
    assert main(check) == 0
    assert "nvcc is 13.0 and the table is of 12.9, so they are not compared" in capsys.readouterr().out
    compiled["-sass"] = CODE.replace("LDGSTS.E.BYPASS.LTC128B.128", "LDGSTS.E")
    assert main(check) == 1
    assert "does not copy 16 bytes at a time." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(part)
    assert "`--output` must be given for a part of the table" in capsys.readouterr().err


def test_a_missing_tool_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(objects.cuda, "find", missing)
    assert main(["resources", "--arch", "70"]) == 1
    assert "error: nvcc was not found" in capsys.readouterr().err


def missing():
    raise objects.CannotBuildError("nvcc was not found")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.skipif(machine_code.tool() is None, reason="needs cuobjdump")
def test_kernels_are_compiled_and_checked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(resources, "FOLDER", tmp_path)
    words = ["resources", "--arch", "80", "--ops", "tokenize", "--types", "Fp32"]
    assert main(words) == 0
    assert main([*words, "--check"]) == 0
    assert "0 faults" in capsys.readouterr().out
    path = objects.objects("80", [("tokenize", "Fp32")])[0]
    assert machine_code.has_code(path, "80")
    assert not machine_code.has_code(path, "90a")
    with pytest.raises(RuntimeError, match="failed"):
        machine_code.facts(tmp_path / "nothing.o", "80")
