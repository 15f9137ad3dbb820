"""Look-ups in threads: answers come by descriptor, are bounded, and a stuck one holds nobody up."""

import select
import threading
from ipaddress import ip_address

import pytest

from shards.edge import resolver as module
from shards.edge.resolver import Answer, Resolver, look_up


def answers(resolver: Resolver, count: int) -> list[Answer]:
    found: list[Answer] = []
    while len(found) < count:
        assert select.select([resolver], [], [], 10)[0]
        found += resolver.collect()
    return found


def finish(resolver: Resolver) -> None:
    threads = list(resolver._threads)
    resolver.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_answers_carry_their_keys():
    resolver = Resolver(2, lambda name: [ip_address(name)])
    assert not resolver._threads  # none before the first name
    keys = [resolver.submit(f"10.0.0.{i}") for i in range(20)]
    assert sorted(answers(resolver, 20)) == sorted(
        Answer(k, [ip_address(f"10.0.0.{i}")]) for i, k in enumerate(keys) if k is not None
    )
    assert len(resolver._threads) <= 2
    while select.select([resolver], [], [], 0.05)[0]:  # a thread that rang after its answer had been taken
        assert resolver.collect() == []
    finish(resolver)


@pytest.mark.parametrize("error", [OSError("no"), UnicodeError("label too long"), ValueError("bad")])
def test_a_failure_is_an_answer_without_addresses(error):
    def fail(_name):
        raise error

    resolver = Resolver(1, fail)
    key = resolver.submit("x.test")
    assert answers(resolver, 1) == [Answer(key or 0, [])]
    finish(resolver)


def test_a_stuck_look_up_holds_nobody_up_and_the_queue_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "QUEUE_MAX", 3)
    release, begun = threading.Event(), threading.Event()

    def stuck(name):
        if name == "stuck":
            begun.set()
            release.wait(10)
        return []

    resolver = Resolver(2, stuck)
    resolver.submit("stuck")
    assert begun.wait(10)
    resolver.submit("free")
    assert [a.key for a in answers(resolver, 1)] == [1]
    begun.clear()
    resolver.submit("stuck")
    assert begun.wait(10)
    assert [resolver.submit("more") for _ in range(5)][3:] == [None, None]
    release.set()
    answers(resolver, 5)
    finish(resolver)


def test_a_name_with_many_addresses_is_cut():
    resolver = Resolver(1, lambda _name: [ip_address(i) for i in range(1, 100)])
    resolver.submit("many.test")
    assert len(answers(resolver, 1)[0].addresses) == module.ADDRESSES_MAX
    finish(resolver)


def test_the_systems_resolver():
    assert ip_address("127.0.0.1") in look_up("localhost") or ip_address("::1") in look_up("localhost")
    with pytest.raises(OSError, match=r"Errno"):
        look_up("name.invalid.")
