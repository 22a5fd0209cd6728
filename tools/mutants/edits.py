"""Small faults as edits of a source file: of Python's syntax tree, and of C++ tokens."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple


class Edit(NamedTuple):
    """``after`` in place of the bytes ``start`` to ``end``."""

    start: int
    end: int
    operator: str
    after: str


_COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "//", "&": "|", "|": "&"}
_NAMES = {
    "min": "max",
    "minimum": "maximum",
    "amin": "amax",
    "all": "any",
    "zeros": "ones",
    "smaller": "larger",
}
_NAMES |= {after: before for before, after in _NAMES.items()}
_BOOLEANS = {"True": "False", "False": "True", "true": "false", "false": "true"}

_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.And: "and",
    ast.Or: "or",
}
_WORDS = {"is": "is not", "is not": "is", "in": "not in", "not in": "in"}
_TEXT = ("__repr__", "__str__", "extra_repr")  # methods that make text for people
_UNSWAPPED = ("isinstance", "getattr", "hasattr", "cast")


def edits_of(file: str, source: bytes) -> list[Edit]:
    """All edits of a file, which is Python or C++ by its name."""
    return of_python(source) if file.endswith(".py") else of_cpp(source)


def of_python(source: bytes) -> list[Edit]:
    """All edits of a module; after a few of them it does not compile."""
    return _Python(source).edits


class _Python(ast.NodeVisitor):
    """Collects edits. Left out: annotations, decorators, error messages, docstrings and other text."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.edits: list[Edit] = []
        self.begins = [0]
        for line in source.splitlines(keepends=True):
            self.begins.append(self.begins[-1] + len(line))
        self.visit(ast.parse(source))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """The bytes of a statement or an expression."""
        assert isinstance(node, ast.stmt | ast.expr)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.begins[node.lineno - 1] + node.col_offset, self.begins[
            node.end_lineno - 1
        ] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        """As it stands in the source."""
        start, end = self.span(node)
        return self.source[start:end].decode()

    def put(self, operator: str, node: ast.AST, after: str) -> None:
        """Replace a node."""
        self.edits.append(Edit(*self.span(node), operator, after))

    def put_between(self, operator: str, start: int, end: int, before: str, after: str) -> None:
        """Replace the symbol ``before``, which parentheses may surround."""
        at = self.source.find(before.encode(), start, end)
        if at >= 0:
            self.edits.append(Edit(at, at + len(before.encode()), operator, after))

    def visit_Raise(self, node: ast.Raise) -> None:
        """Nothing in it: mostly the text of a message."""

    visit_JoinedStr = visit_Import = visit_ImportFrom = visit_Raise  # type: ignore[assignment]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Defaults and body."""
        if node.name in _TEXT:
            return
        for child in [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]:
            self.visit(child)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """The body."""
        for child in node.body:
            self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The value."""
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Drop what changes an object, or a variable that has a value already."""
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            return
        stored = {
            name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)
        }
        used = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
        if stored <= used or any(
            isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets
        ):
            self.put("drop statement", node, "pass")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Drop it, or overwrite instead of accumulating."""
        self.put("drop statement", node, "pass")
        symbol = _SYMBOLS.get(type(node.op))
        if symbol is not None:
            between = self.span(node.target)[1], self.span(node.value)[0]
            self.put_between("accumulate", *between, symbol + "=", "=")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Drop a call; a docstring is none."""
        if isinstance(node.value, ast.Call):
            self.put("drop statement", node, "pass")
            self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        """Return nothing."""
        if node.value is not None and self.text(node.value) != "None":
            self.put("return", node, "return None")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        """Never take the branch."""
        if self.text(node.test) != "TYPE_CHECKING":
            self.put("remove branch", node.test, "False")
            self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """The same in an expression."""
        self.put("remove branch", node.test, "False")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Swap < and <=, == and !=, is and is not, in and not in."""
        symbol = _SYMBOLS[type(node.ops[0])]
        if len(node.ops) == 1:
            between = self.span(node.left)[1], self.span(node.comparators[0])[0]
            self.put_between("comparison", *between, symbol, {**_COMPARISONS, **_WORDS}[symbol])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Swap + and -, * and /, & and |."""
        symbol = _SYMBOLS.get(type(node.op))
        sequences = (ast.JoinedStr, ast.Tuple, ast.List)
        sides = (node.left, node.right)
        text = any(isinstance(side, sequences) or _is_text(side) for side in sides)
        if symbol is not None and not text:
            between = self.span(node.left)[1], self.span(node.right)[0]
            self.put_between("arithmetic", *between, symbol, _ARITHMETIC[symbol])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Swap and and or."""
        between = self.span(node.values[0])[1], self.span(node.values[1])[0]
        symbol = _SYMBOLS[type(node.op)]
        self.put_between("and, or", *between, symbol, "or" if symbol == "and" else "and")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Drop not, - and ~."""
        symbol = {ast.Not: "not ", ast.USub: "-", ast.Invert: "~"}.get(type(node.op))
        if symbol is not None:
            start = self.span(node)[0]
            self.put_between("negation", start, start + len(symbol), symbol, "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Another number, or the other truth value."""
        if isinstance(node.value, bool):
            self.put("boolean", node, str(not node.value))
        elif isinstance(node.value, int | float):
            step = 1 if node.value == 0 or node.col_offset % 2 else -1
            self.put("constant", node, repr(node.value + step))

    def visit_Slice(self, node: ast.Slice) -> None:
        """Leave out a bound."""
        for bound in filter(None, (node.lower, node.upper)):
            self.put("slice bound", bound, "")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Swap min and max and the like, or the first two arguments."""
        name = self.text(node.func).rpartition(".")[2]
        end = self.span(node.func)[1]
        if name in _NAMES:
            self.edits.append(Edit(end - len(name), end, "min, max", _NAMES[name]))
        first = node.args[:2]
        if (
            len(first) == 2
            and name not in _UNSWAPPED
            and not any(isinstance(arg, ast.Starred) for arg in first)
        ):
            a, b = (self.text(arg) for arg in first)
            middle = self.source[self.span(first[0])[1] : self.span(first[1])[0]].decode()
            if a != b:
                edit = Edit(self.span(first[0])[0], self.span(first[1])[1], "swap arguments", b + middle + a)
                self.edits.append(edit)
        self.generic_visit(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)


# Comments, strings and lines of the preprocessor.
_NO_CODE = re.compile(
    rb"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|^[ ]*#(?:[^\n]*\\\n)*[^\n]*",
    re.DOTALL | re.MULTILINE,
)
_CPP = {
    "comparison": r"(?<= )(?:<=|>=|==|!=|<|>)(?= )",
    "arithmetic": r"(?<= )[-+*/%](?= )",
    "and, or": r"(?<= )(?:&&|\|\|)(?= )",
    "accumulate": r"(?<= )[-+*]=(?= )",
    "constant": r"(?<![\w.])\d+(?![\w.])",
    "boolean": r"\b(?:true|false)\b",
    "negation": r"(?<![\w)\]])[!](?=[\w(])|(?<=[(,=?:] )-(?=[\w(])",
    "min, max": r"\b(?:smaller|larger|min|max)(?=[<(])",
    "swap arguments": r"(?<=\w\()\w+, \w+(?=[,)])",
    "drop statement": r"(?<=\n)[ ]+[\w.>\[\]-]+(?:\([^;{}\n]*\)|(?: [-+*]?= |\+\+|--)[^;{}\n]*);(?=\n)",
    "remove branch": r"(?<=\bif \()[^(){};\n]*(?:\([^(){};\n]*\)[^(){};\n]*)*(?=\) )",
    "return": r"(?<=\breturn )[^;{}\n]+(?=;)",
}


def of_cpp(source: bytes) -> list[Edit]:
    """All edits of a C++ file; after some of them it does not compile."""
    code = _NO_CODE.sub(lambda match: re.sub(rb"[^\n]", b" ", match[0]), source)
    # Bytes one to one, so that places in the text are places in the file.
    return list(_of_code(code.decode("latin-1")))


def _of_code(code: str) -> Iterator[Edit]:
    for operator, pattern in _CPP.items():
        for match in re.finditer(pattern, code):
            start = match.start() + len(match[0]) - len(match[0].lstrip())
            before = match[0].strip()
            after = _replacement(operator, before)
            if after != before:
                yield Edit(start, match.end(), operator, after)


def _replacement(operator: str, before: str) -> str:
    """What a C++ token or statement becomes."""
    if operator == "constant":
        return str(int(before) + 1)
    if operator == "swap arguments":
        return ", ".join(reversed(before.split(", ")))
    if operator == "accumulate":
        return "="
    fixed = {"negation": "", "drop statement": ";", "remove branch": "false", "return": "{}", "and, or": "&&"}
    tables = {**_COMPARISONS, **_ARITHMETIC, "%": "/", **_NAMES, **_BOOLEANS, "&&": "||"}
    return tables.get(before) or fixed[operator]
