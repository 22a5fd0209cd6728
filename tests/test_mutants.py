"""The tool that measures how many faults the tests notice."""

import json

import pytest

from tools.mutants import __main__ as command
from tools.mutants.edits import of_cpp, of_python
from tools.mutants.sampling import ROOT, TARGETS, candidates, mutants_of, planted, sample

PYTHON = {
    "a < b": {"a <= b"},
    "(a) != (b)": {"(a) == (b)"},
    "a not in b": {"a in b"},
    "a // b": {"a * b"},
    "a and (b)": {"a or (b)"},
    "f(not (a))": {"f((a))"},
    "-a": {"a"},
    "max(a)": {"min(a)"},
    "a.amin()": {"a.amax()"},
    "f(a, b=True)": {"f(a, b=False)"},
    "f(a, (b, c))": {"f((b, c), a)"},
    "a[b:c]": {"a[:c]", "a[b:]"},
    "a if b else c": {"a if False else c"},
    "a[3]": {"a[2]", "a[4]"},
}


@pytest.mark.parametrize("before", PYTHON)
def test_edits_of_expressions(before):
    found = edited(f"value = {before}\n", of_python)
    expected = {f"value = {after}\n" for after in PYTHON[before]}
    assert found <= expected
    assert found == expected or before == "a[3]"


STATEMENTS = {
    "if a:\n    f()\n": {"if False:\n    f()\n", "if a:\n    pass\n"},
    "a += b\n": {"a = b\n", "pass\n"},
    "a = f(a)\n": {"pass\n"},
    "a.b = c\n": {"pass\n"},
    "def f():\n    return a\n": {"def f():\n    return None\n"},
    "def f(a=1): ...\n": {"def f(a=0): ...\n", "def f(a=2): ...\n"},
}


@pytest.mark.parametrize("before", STATEMENTS)
def test_edits_of_statements(before):
    found = edited(before, of_python)
    assert found
    assert found <= STATEMENTS[before]


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring of 3 words."""\n',
        "import a.b\n",
        "__all__ = [a + b]\n",
        "a: Literal[1] = b\n",
        "def f(a: int | None) -> Literal[1]: ...\n",
        "raise ValueError(f'{a + 1}' + b)\n",
        "a = f'{b + 1}'\n",
        "class A:\n    def extra_repr(self):\n        return a + 1\n",
        "@f(1)\nclass A: ...\n",
    ],
)
def test_what_is_no_code_is_not_edited(source):
    assert edited(source, of_python) == set()


CPP = {
    "if (a <= b) f();": {"if (a < b) f();", "if (false) f();"},
    "if (f(a)) g();": {"if (false) g();"},
    "x = a % b;": {"x = a / b;"},
    "x = a && b;": {"x = a || b;"},
    "x = !a;": {"x = a;"},
    "x = larger(a, b);": {"x = smaller(a, b);", "x = larger(b, a);"},
    "return f(a);": {"return {};"},
    "f<T>(3);": {"f<T>(4);"},
    "// a + b": set(),
    "#if a + 1": set(),
    'f("a + 1");': set(),
}


@pytest.mark.parametrize("before", CPP)
def test_edits_of_cpp(before):
    assert edited(before, of_cpp) == CPP[before]


def test_a_line_of_cpp_is_dropped():
    assert "\n  ;\n" in edited("\n  f(a, 1.5f);\n", of_cpp)
    assert {"\n  ;\n", "\n  a = b;\n"} == edited("\n  a += b;\n", of_cpp)


def edited(source, edits):
    data = source.encode()
    return {(data[: e.start] + e.after.encode() + data[e.end :]).decode() for e in edits(data)}


def test_ids_do_not_depend_on_the_lines_around():
    source = b"a = b + c\na = b + c\n"
    first, second = mutants_of("a.py", source)
    moved = mutants_of("a.py", b"import d\n" + source)
    assert first.id != second.id
    assert [mutant.id for mutant in moved] == [first.id, second.id]
    assert [mutant.line for mutant in moved] == [2, 3]
    assert first.applied(source) == b"a = b - c\na = b + c\n"


@pytest.mark.parametrize("target", TARGETS)
def test_samples_are_repeatable_and_spread(target):
    found = candidates(target)
    parts = sample(found, target, 1, 24)
    assert parts == sample(candidates(target), target, 1, 24)
    assert parts != sample(found, target, 2, 24)
    # Together they are all, each once, part after part.
    assert sorted(mutant.id for part in parts for mutant in part) == sorted({mutant.id for mutant in found})
    assert parts[0] != found[: len(parts[0])]
    assert set(parts[0]) == set(found[: len(parts[0])])
    assert len({part[0].operator for part in parts}) >= 8


def results(path, **statuses):
    mutant = {"file": "a.py", "line": 1, "operator": "arithmetic", "before": "+", "after": "-", "test": "t"}
    lines = [json.dumps({"id": key, "status": status, **mutant}) for key, status in statuses.items()]
    path.write_text("\n".join(lines))
    return str(path)


def test_compare_names_what_is_noticed_no_longer(tmp_path, capsys):
    old = results(tmp_path / "old", a="noticed", b="noticed", c="survived", d="did not compile", e="noticed")
    new = results(tmp_path / "new", a="noticed", b="survived", c="noticed")
    assert command.main(["compare", old, old]) == 0
    capsys.readouterr()
    assert command.main(["compare", old, new]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["b", "e", "3"]


def test_mutants_that_were_noticed_are_chosen_again(tmp_path):
    first, second = (part[0].id for part in sample(candidates("ops"), "ops", 1, 2))
    path = results(tmp_path / "old", **{first: "noticed", second: "survived"})
    assert [[mutant.id for mutant in part] for part in command.chosen("ops", 1, 2, [path])] == [[first]]
    with pytest.raises(SystemExit, match="no mutants 0000"):
        command.chosen("ops", 1, 2, ["0000"])


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_planted_faults_fit_the_sources(target):
    found = planted(target)  # raises where a fault's text is not in its file
    assert len({mutant.id for mutant in found}) == len(found)
    for mutant in found:
        source = (ROOT / mutant.file).read_bytes()
        assert mutant.applied(source) != source, mutant.id
        assert source[mutant.start : mutant.end].decode() == mutant.before
    chosen = command.chosen(target, 1, 1, [found[3].id], by_hand=True)
    assert [[mutant.id for mutant in part] for part in chosen] == [[found[3].id]]
