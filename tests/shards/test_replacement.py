"""An upgrade whose last step the kernel refuses: the old code goes on."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from shards import replacement as module
from shards import upgrade
from shards.replacement import Replacement


class Orders:
    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, Any]]] = []

    def answer(self, order: int, data: dict[str, Any]) -> None:
        self.answers.append((order, data))

    def refuse(self, order: int, why: str) -> None:
        raise AssertionError(why)


def test_what_runs_goes_on_when_the_new_code_cannot_be_executed(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(upgrade, "replace", refused)
    monkeypatch.setattr(upgrade, "describe", lambda *_: {})
    monkeypatch.setattr(upgrade, "differences", lambda *_: [])
    plan = SimpleNamespace(config=None, columns=(), command=["nyxd"])
    held = SimpleNamespace(events=[1], keep=dict, descriptors=list)
    orders: Any = Orders()
    node = Replacement(plan, held, SimpleNamespace(helpers={}), orders, {}, [], lambda: None)  # type: ignore[arg-type]
    node._preflight = module._Preflight(7, None, SimpleNamespace(result=lambda _status: {}), 0.0, status=0)  # type: ignore[arg-type]
    assert node.tick() == 0.0
    assert orders.answers == [(7, {"drained": False, "changes": []})]
    assert "could not be executed (Cannot allocate memory)" in capfd.readouterr().err
    assert node.tick() is None
