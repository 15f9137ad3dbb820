"""The kept versions: written whole, bounded, readable by their owner only, and tolerant of damage."""

import stat

from nyx.changes import Change
from nyx.history import FOLDER, KEPT, Entry, History


def entry(number):
    changes = [Change("path.hops", 3, number, live=True)]
    return Entry(number, 1000 + number, "reload", changes, {"path.hops": number}, {"path.hops": "nyx.toml:3"}, {"sequence": 1})


def test_an_entry_is_read_as_it_was_written(tmp_path):
    history = History(tmp_path)
    assert history.entries() == []
    assert history.newest() is None
    history.add(entry(1))
    history.add(entry(2))
    assert history.entries() == [entry(1), entry(2)]
    assert history.newest() == entry(2)
    assert history.entry(3) is None
    file = tmp_path / FOLDER / "00000001.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_the_oldest_are_dropped_beyond_the_bound(tmp_path):
    history = History(tmp_path)
    for number in range(1, KEPT + 6):
        history.add(entry(number))
    assert history.numbers() == list(range(6, KEPT + 6))


def test_a_damaged_entry_is_passed_over_and_its_number_stays_taken(tmp_path):
    history = History(tmp_path)
    for number in (1, 2, 3):
        history.add(entry(number))
    (tmp_path / FOLDER / "00000003.json").write_text('{"version": 3')
    assert history.newest() == entry(2)
    assert history.numbers() == [1, 2, 3]
    assert [found.version for found in history.entries()] == [1, 2]
