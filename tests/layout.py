"""The rules of the tree, as functions from source to findings; test_layout.py applies them and shows that each can fail.

Import rules between rooms are contracts of import-linter (pyproject.toml). Here stands what it cannot see: calls that read a
clock or draw entropy, sizes, names, folders and forbidden text.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent

TOP_FOLDERS: Final = {".ci", "bench", "control", "docs", "formal", "nyx", "shards", "systemd", "tests"}
TOP_FILES: Final = {
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "pyproject.toml",
    "requirements-dev.lock",
    "requirements-fuzz.lock",
    "requirements-otel.lock",
    "requirements.lock",
}

MODULE_LINES: Final = 500  # above: the docstring says why in a paragraph that begins with "Size:"
FUNCTION_LINES: Final = 80
KERNEL_LINES: Final = 120
KERNEL_DECORATORS: Final = {"kernel", "inline"}
GENERATED: Final = "control/api/generated/nyx_"  # a compiler's output, which follows rules of its own
VAGUE_NAMES: Final = {"common", "helper", "helpers", "misc", "util", "utils"}

CLOCK_MODULES: Final = {"datetime", "random", "secrets", "time", "uuid"}
CLOCK_CALLS: Final = {
    "nacl.utils.random": "entropy",
    "np.random": "entropy",
    "numpy.random": "entropy",
    "os.getrandom": "entropy",
    "os.times": "a clock",
    "os.urandom": "entropy",
}

# Each pattern with what is wrong about it. The two files that must spell them are exempt.
FORBIDDEN_TEXT: Final = {
    re.compile(r"\b(TODO|FIXME|NotImplementedError)\b"): "unfinished work",
    re.compile(
        r"\b(pypi\.org|pythonhosted\.org|registry\.npmjs\.org|deb\.debian\.org|proxy\.golang\.org)\b"
    ): "a registry's host name",
    re.compile(r"(?<![\w.~$}*-])/(work|root|home/(?!(?:USER|a|alice|bob)\b)\w+)/"): "a path of somebody's own machine",
    re.compile(r"^(<{7}|>{7}) ", re.MULTILINE): "a merge that is not finished",
}
SPELLS_FORBIDDEN_TEXT: Final = {"tests/layout.py", "tests/test_layout.py"}


class Finding(NamedTuple):
    """One broken rule."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        """Give the form that editors jump to."""
        return f"{self.path}:{self.line}: {self.what}"


def project_files() -> list[str]:
    """Every file that git tracks or would track, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    )
    names = sorted({name for name in listed.stdout.decode().split("\0") if name})
    return [name for name in names if (ROOT / name).is_file()]


def check_place(path: str) -> Iterator[Finding]:
    """The top level is fixed, and a module's name says what it holds."""
    pure = PurePosixPath(path)
    allowed = TOP_FOLDERS if len(pure.parts) > 1 else TOP_FILES
    if pure.parts[0] not in allowed:
        yield Finding(path, 1, f"{pure.parts[0]} is not part of the top level")
    if pure.suffix == ".py" and pure.parts[0] != "tests":
        for part in (*pure.parts[:-1], pure.stem):
            if part.strip("_") in VAGUE_NAMES:
                yield Finding(path, 1, f"a module named {part} says nothing about what it holds")


def check_text(path: str, text: str) -> Iterator[Finding]:
    """No unfinished work, no registry, no path of one machine."""
    if path in SPELLS_FORBIDDEN_TEXT:
        return
    for pattern, what in FORBIDDEN_TEXT.items():
        for match in pattern.finditer(text):
            yield Finding(path, text.count("\n", 0, match.start()) + 1, f"{what}: {match.group().strip()}")


def check_module(path: str, text: str) -> Iterator[Finding]:
    """Docstring and sizes of a module and its functions."""
    tree = ast.parse(text, path)
    docstring = ast.get_docstring(tree)
    if not docstring:
        yield Finding(path, 1, "a module begins with a docstring")
    lines = text.count("\n")
    if lines > MODULE_LINES and not re.search(r"^Size: \S", docstring or "", re.MULTILINE):
        yield Finding(path, 1, f"{lines} lines; above {MODULE_LINES} the docstring gives the reason (a paragraph 'Size: ...')")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _check_function(path, node)


def _check_function(path: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Finding]:
    bound = KERNEL_LINES if KERNEL_DECORATORS & {_decorator_name(d) for d in node.decorator_list} else FUNCTION_LINES
    first = node.body[0]
    explained = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    documentation = _lines(first) if explained else 0
    length = _lines(node) - documentation
    if length > bound:
        yield Finding(path, node.lineno, f"{node.name} has {length} lines besides its docstring; the bound is {bound}")


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _decorator_name(node: ast.expr) -> str:
    return _dotted(node.func if isinstance(node, ast.Call) else node).rpartition(".")[2]


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def check_purity(path: str, text: str) -> Iterator[Finding]:
    """In nyx/ but its SDK, time and entropy are arguments; nothing reads a clock or draws a number."""
    pure = PurePosixPath(path)
    if pure.parts[0] != "nyx" or pure.parts[1] == "sdk":
        return
    for node in ast.walk(ast.parse(text, path)):
        for name in _reached(node):
            root = name.partition(".")[0]
            if root in CLOCK_MODULES:
                yield Finding(path, _line(node), f"{name}: time and entropy are arguments here")
            for call, what in CLOCK_CALLS.items():
                if name == call or name.startswith(call + "."):
                    yield Finding(path, _line(node), f"{name} is {what}: it is an argument here")


def _reached(node: ast.AST) -> Iterator[str]:
    """Dotted names of other modules that this node imports or reads, relative to the names they are usually imported by."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield from (f"{module}.{alias.name}" for alias in names)
        case ast.Attribute() if (dotted := _dotted(node)) in CLOCK_CALLS:
            yield dotted
        case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(value=str(name)), *_]):
            yield name
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
            yield name


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 1))


def check_file(path: str) -> list[Finding]:
    """Apply every rule to one file of the project."""
    found = list(check_place(path))
    if path.startswith(GENERATED):
        return found
    try:
        text = (ROOT / path).read_text("utf-8")
    except UnicodeDecodeError:
        return found  # vectors, pictures
    found += check_text(path, text)
    if path.endswith(".py"):
        found += check_module(path, text)
        found += check_purity(path, text)
    return found
