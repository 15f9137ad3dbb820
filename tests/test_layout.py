"""The tree keeps its rules, and each rule refuses what it is there to refuse."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import layout


def test_the_tree_keeps_its_rules() -> None:
    findings = [str(finding) for path in layout.project_files() for finding in layout.check_file(path)]
    assert not findings, "\n".join(findings)


def test_the_tree_is_seen() -> None:
    assert {"nyx/wire/geometry.py", "tests/test_layout.py", "Makefile"} <= set(layout.project_files())


@pytest.mark.parametrize(
    "path",
    ["scratch/notes.md", "setup.py", "nyx/util.py", "shards/helpers.py", "control/common/__init__.py", "nyx/wire/_util.py"],
)
def test_place_refuses(path: str) -> None:
    assert list(layout.check_place(path))


@pytest.mark.parametrize(
    "path", ["nyx/wire/geometry.py", "README.md", ".ci/run", "docs/protocol.md", "tests/helpers.py", "bench/stream.py"]
)
def test_place_accepts(path: str) -> None:
    assert not list(layout.check_place(path))


@pytest.mark.parametrize(
    "text",
    [
        "# TODO later",
        "FIXME",
        "raise NotImplementedError",
        "index = https://pypi.org/simple",
        "files.pythonhosted.org",
        "cd /work/tree",
        'open("/root/x")',
        "(/home/jdoe/nyx)",
        "a\n<<<<<<< HEAD\nb",
    ],
)
def test_text_refuses(text: str) -> None:
    assert list(layout.check_text("docs/x.md", text))


@pytest.mark.parametrize(
    "text", ["/var/lib/nyx", "~/.cache/nyx", "$HOME/work/nyx", "network/root/x", "/home/alice/.config", "title\n======="]
)
def test_text_accepts(text: str) -> None:
    assert not list(layout.check_text("docs/x.md", text))


def _function(lines: int, decorator: str = "") -> str:
    return f'"""Say it."""\n{decorator}\ndef f():\n    """Say it."""\n' + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n",
        "",
        '"""Say it."""\n' + "x = 1\n" * layout.MODULE_LINES,
        _function(layout.FUNCTION_LINES + 1),
        _function(layout.FUNCTION_LINES + 1, "@cache"),
        _function(layout.FUNCTION_LINES + 1).replace("def f", "async def f"),
        _function(layout.KERNEL_LINES + 1, "@kernel('i8')"),
    ],
    ids=["no docstring", "empty", "long module", "long function", "long decorated", "long async", "long kernel"],
)
def test_module_refuses(text: str) -> None:
    assert list(layout.check_module("nyx/x.py", text))


@pytest.mark.parametrize(
    "text",
    [
        '"""Say it."""\nx = 1\n',
        '"""Say it.\n\nSize: one table, which is read as a whole.\n"""\n' + "x = 1\n" * layout.MODULE_LINES,
        _function(layout.FUNCTION_LINES),
        _function(layout.KERNEL_LINES, "@kernel('i8')"),
        _function(layout.KERNEL_LINES, "@nyx.kernel.kernel"),
        '"""Say it."""\ndef f():\n    """Say it\n' + "at length\n" * 200 + '    """\n',
    ],
    ids=["small", "long with reason", "function", "kernel", "dotted kernel", "long docstring"],
)
def test_module_accepts(text: str) -> None:
    assert not list(layout.check_module("nyx/x.py", text))


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "import random as r",
        "from time import monotonic_ns",
        "from datetime import datetime",
        "import secrets",
        "import os\nos.urandom(32)",
        "import os\nf = os.getrandom",
        "from os import urandom",
        "import numpy as np\nnp.random.default_rng()",
        "from numpy.random import default_rng",
        "import nacl.utils\nnacl.utils.random(32)",
        "from nacl.utils import random",
        "def f():\n    import time",
        "__import__('time')",
        "importlib.import_module('random')",
    ],
)
def test_purity_refuses(text: str) -> None:
    assert list(layout.check_purity("nyx/stream/x.py", text))
    assert not list(layout.check_purity("shards/x.py", text))
    assert not list(layout.check_purity("nyx/sdk/x.py", text))


@pytest.mark.parametrize(
    "text", ["def f(time): return time.now", "import os\nos.environ", "from nyx.wire import geometry", "rng.random(3)"]
)
def test_purity_accepts(text: str) -> None:
    assert not list(layout.check_purity("nyx/stream/x.py", text))


# One forbidden import a contract of pyproject.toml: (module that imports, statement, words of the broken contract's name).
STRAYS = [
    ("shards/__init__.py", "import control", "planes"),
    ("control/__init__.py", "import shards", "planes"),
    ("nyx/wire/__init__.py", "import shards", "planes"),
    ("nyx/path/__init__.py", "import control", "planes"),
    ("nyx/wire/__init__.py", "import nyx.crypto", "rooms of nyx"),
    ("nyx/link/__init__.py", "import nyx.onion", "rooms of nyx"),
    ("nyx/onion/__init__.py", "import nyx.stream", "rooms of nyx"),
    ("nyx/stream/__init__.py", "import nyx.path", "rooms of nyx"),
    ("nyx/attic.py", "X = 1", "rooms of nyx"),
    ("nyx/wire/__init__.py", "import socket", "nyx is pure"),
    ("nyx/stream/__init__.py", "from asyncio import Queue", "nyx is pure"),
    ("nyx/crypto/__init__.py", "import threading", "nyx is pure"),
    ("nyx/wire/__init__.py", "import pydantic", "pydantic"),
    ("control/cli/__init__.py", "import numpy", "nyxctl starts fast"),
    ("nyx/sdk/__init__.py", "import shards", "planes"),
    ("nyx/sdk/__init__.py", "import numpy", "an application that uses the SDK"),
    ("nyx/path/__init__.py", "import nyx.sdk", "rooms of nyx"),
]


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the rooms without their contents, so that a contract's verdict depends on the stray import alone."""
    root = tmp_path_factory.mktemp("skeleton")
    shutil.copy(layout.ROOT / "pyproject.toml", root)
    for path in layout.project_files():
        if path.startswith(("nyx/", "shards/", "control/")) and path.endswith("/__init__.py"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text('"""A room."""\n')
    return root


def _lint_imports(root: Path) -> tuple[int, str]:
    command = "from importlinter.cli import lint_imports_command as main; main()"
    run = subprocess.run([sys.executable, "-c", command, "--no-cache"], cwd=root, check=False, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_contracts_accept_the_bare_rooms(skeleton: Path) -> None:
    code, output = _lint_imports(skeleton)
    assert code == 0, output


@pytest.mark.parametrize(("path", "statement", "contract"), STRAYS)
def test_contracts_refuse(skeleton: Path, tmp_path: Path, path: str, statement: str, contract: str) -> None:
    root = tmp_path / "tree"
    shutil.copytree(skeleton, root)
    (root / path).write_text(f'"""A room."""\n{statement}\n')
    code, output = _lint_imports(root)
    broken = [line for line in output.splitlines() if line.endswith("BROKEN")]
    assert code == 1, output
    assert any(line.startswith(contract) for line in broken), output
