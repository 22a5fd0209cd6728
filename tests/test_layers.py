"""The one-way import rules of CONTRIBUTING, checked in the package's source."""

import ast
from pathlib import Path

import pytest

import vt_fast

PACKAGE = Path(vt_fast.__file__).parent

# A module imports from lower layers and from its own entry here. The longest matching name counts.
LAYERS = {
    "vt_fast.__main__": 10,
    "vt_fast.self_test": 9,
    "vt_fast.info": 8,
    "vt_fast.tune": 8,
    "vt_fast.flops": 8,
    "vt_fast.models": 7,
    "vt_fast.patches": 7,
    "vt_fast.nn": 6,
    "vt_fast.streaming": 6,
    "vt_fast.functional": 5,
    "vt_fast.onnx": 4,
    "vt_fast.distributed": 4,
    "vt_fast.nested": 3,
    "vt_fast.operands": 3,
    "vt_fast.ops": 3,
    "vt_fast.checks": 2,
    "vt_fast.backends": 1,
    "vt_fast._native": 0,
    "vt_fast.merging": 1,
    "vt_fast.layout": 0,
    "vt_fast.precision": 0,
    "vt_fast.testing": 1,
    "vt_fast.version": 0,
}
REFERENCE = "vt_fast.reference"


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Each module of the package that a file imports, and whether it does so when it is imported itself."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.Lambda)) or typing_only(outer)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [resolve(node.module, alias.name) for alias in node.names]
        else:
            continue
        yield from ((name, id(node) not in lazy) for name in names if name.split(".")[0] == "vt_fast")


def typing_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def resolve(module, name):
    """``from module import name``: the submodule of that name, otherwise the module."""
    inner = PACKAGE.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if inner.is_dir() or inner.with_suffix(".py").is_file() else module


def entry(name, entries):
    """The longest of the entries that a module's name is or lies in."""
    matches = [known for known in entries if name == known or name.startswith(f"{known}.")]
    return max(matches, key=len, default=None)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
REST = [name for name in FILES if name != "vt_fast" and entry(name, [REFERENCE]) is None]


@pytest.mark.parametrize("name", REST)
def test_imports_go_one_way(name):
    own = entry(name, LAYERS)
    assert own is not None, f"{name} is in no layer"
    for found, _ in imports(FILES[name]):
        if entry(found, [REFERENCE]):
            continue
        other = entry(found, LAYERS)
        assert other is not None, f"{name} imports {found}, which is in no layer"
        assert other == own or LAYERS[other] < LAYERS[own], f"{name} imports {found}"


def test_the_reference_imports_nothing_of_the_package():
    for name in FILES:
        if entry(name, [REFERENCE]):
            assert all(entry(found, [REFERENCE]) for found, _ in imports(FILES[name])), name


def test_only_modules_with_a_reference_backend_import_it_and_only_when_it_runs():
    """But for the self-test, which it judges."""
    for name in set(REST) - {"vt_fast.self_test"}:
        for found, at_import in imports(FILES[name]):
            if entry(found, [REFERENCE]):
                assert entry(name, ["vt_fast.nn", "vt_fast.models"]), f"{name} imports {found}"
                assert not at_import, f"{name} imports {found} before it is needed"


def test_importing_the_package_imports_only_its_ops():
    found = {name for name, at_import in imports(FILES["vt_fast"]) if at_import}
    assert found == {"vt_fast.version", "vt_fast.ops"}
