"""Versions in shared memory: staged beside the one in force, put in force by one word, never read torn."""

import dataclasses

import numpy as np
import pytest

from nyx.columns import view
from nyx.committed import TEXT_MAX, Committed, DirectoryRef, Version, committed_columns
from nyx.errors import ConfigError, InternalError
from nyx.path.directory import SIZE_MAX


def memory():
    small = [c._replace(length=min(c.length, 2 * SIZE_MAX)) for c in committed_columns()]
    sizes = sum(-(-c.dtype.itemsize * c.length // 4096) * 4096 for c in small)
    return view(small, np.zeros(sizes, np.uint8))


def version(number, hops=3, **changed):
    place = DirectoryRef(7, "00" * 32, 1000, 0, 0)
    return dataclasses.replace(Version(number, {"path.hops": hops}, {}, {}, place, "reload", 5), **changed)


def test_nothing_is_in_force_at_first():
    committed = Committed(memory())
    assert committed.word == 0
    with pytest.raises(InternalError, match="does not hold version 0"):
        committed.current()


def test_a_staged_version_comes_into_force_with_its_word_and_not_before():
    committed = Committed(memory())
    committed.stage(version(4), b"first")
    assert committed.word == 0
    committed.commit(4)
    first = committed.current()
    assert (first[0].number, first[1]) == (4, b"first")
    committed.stage(version(5, hops=5), b"second one")
    assert committed.current() == first
    assert committed.staged(5)[0].settings == {"path.hops": 5}
    committed.commit(5)
    found, data = committed.current()
    assert (found.number, found.settings, data) == (5, {"path.hops": 5}, b"second one")


def test_a_version_without_a_new_directory_shares_the_one_in_force():
    committed = Committed(memory())
    committed.stage(version(1), b"snapshot")
    committed.commit(1)
    for number in range(2, 6):
        before = committed.text_of(number - 1)
        committed.stage(version(number, directory=before.directory), None)
        committed.commit(number)
        assert committed.current()[1] == b"snapshot"
    committed.stage(version(6), b"another")
    assert committed.current()[1] == b"snapshot"
    committed.commit(6)
    assert committed.current()[1] == b"another"


def test_a_version_that_was_staged_again_has_another_digest():
    committed = Committed(memory())
    committed.stage(version(1), b"")
    committed.commit(1)
    committed.stage(version(2), None)
    before = committed.digest(2)
    committed.stage(version(2, hops=6), None)
    assert committed.digest(2) != before


def test_only_what_is_staged_comes_into_force():
    committed = Committed(memory())
    committed.stage(version(1), b"")
    committed.commit(1)
    with pytest.raises(InternalError, match="does not hold version 3"):
        committed.commit(3)
    with pytest.raises(InternalError, match="cannot follow"):
        committed.stage(version(3), None)
    assert committed.word == 1


def test_a_text_that_was_damaged_is_not_believed():
    columns = memory()
    committed = Committed(columns)
    committed.stage(version(1), b"")
    columns["config_texts"][TEXT_MAX + 3] ^= 1
    with pytest.raises(InternalError, match="does not hold version 1"):
        committed.commit(1)


def test_a_configuration_that_does_not_fit_is_refused_before_anything_is_written():
    committed = Committed(memory())
    with pytest.raises(ConfigError, match=r"at most 65536 fit"):
        committed.stage(version(1, settings={"exit.policy": ["accept *:1"] * 6000}), b"")
    assert committed.word == 0


def test_a_reader_that_meets_a_commit_reads_again(monkeypatch):
    committed = Committed(memory())
    committed.stage(version(1), b"one")
    committed.commit(1)
    inner = committed.snapshot_of
    rounds: list[int] = []

    def interrupted(found):
        data = inner(found)
        if not rounds:
            rounds.append(found.number)
            committed.stage(version(2, hops=4), b"two")
            committed.commit(2)
            committed.stage(version(3, hops=5), b"three")
        return data

    monkeypatch.setattr(committed, "snapshot_of", interrupted)
    found, data = committed.current()
    assert rounds == [1]
    assert (found.number, data) == (2, b"two")
