"""What a reload would change: which keys are taken over, which wait, and when all of them wait."""

import pytest

from nyx import config
from nyx.changes import compare, plan

BASE = {"directory.file": "/net/directory", "directory.signers": ["ab" * 32]}


def of(**changed):
    return config.settings(config.from_settings({**BASE, **{key.replace("__", "."): value for key, value in changed.items()}}))


def test_live_keys_are_taken_over_and_the_others_wait():
    found = plan(of(), of(path__hops=4, workers__count=2, exit__policy=["reject *:*"]))
    assert [(c.key, c.old, c.new, c.live) for c in found.applied] == [
        ("path.hops", 3, 4, True),
        ("exit.policy", ["accept public:80,443", "reject *:*"], ["reject *:*"], True),
    ]
    assert [(c.key, c.old, c.new, c.live) for c in found.waiting] == [("workers.count", "auto", 2, False)]
    assert found.settings == of(path__hops=4, exit__policy=["reject *:*"])


def test_nothing_differs_from_itself():
    found = plan(of(), of())
    assert (found.settings, found.applied, found.waiting) == (of(), [], [])


def test_a_live_change_that_needs_a_waiting_one_waits_with_it():
    found = plan(of(), of(path__hops=2, path__circuits_ahead=5, path__allow_loopback=True))
    assert found.settings == of()
    assert found.applied == []
    assert {c.key for c in found.waiting} == {"path.hops", "path.circuits_ahead", "path.allow_loopback"}


def test_a_change_is_shown_as_the_file_says_it_and_cut_where_it_is_long():
    assert compare(of(), of(node__alias="x"))[0].text() == '"nyx" -> "x"'
    text = compare(of(), of(exit__policy=["accept 192.0.2.0/24:443"] * 50))[0].text()
    assert text.endswith("...")
    assert len(text) < 140


@pytest.mark.parametrize("key", [key.name for key in config.KEYS])
def test_every_key_survives_the_way_through_settings(key):
    values = of()
    again = config.from_settings(values)
    assert config.setting(again, key) == values[key]


def test_settings_hold_only_what_a_file_can_say():
    for value in of(proxy__listen="[::1]:99", workers__count=3).values():
        assert isinstance(value, str | int | bool) or all(isinstance(item, str) for item in value)
    assert of(proxy__listen="[::1]:99")["proxy.listen"] == "[::1]:99"
