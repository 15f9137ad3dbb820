"""Calling nyxctl in this process, away from the settings and the home of whoever runs the tests."""

import os

import pytest

from control.cli import run


@pytest.fixture
def ctl(capsys, monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("NYX_SOCKET", "NYX_CONFIG", "NYX_NODE", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(*args):
        code = run([str(a) for a in args])
        return code, *capsys.readouterr()

    return call
