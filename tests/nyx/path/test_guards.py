"""Guards: kept through failures, changed only when gone or too old."""

import pytest

from nyx.errors import ConfigError
from nyx.path.guards import CLOCK_BACK, LIFETIME, Guard, choose_guard, current_guard, keep_guard, load_guards, save_guards
from nyx.path.select import NoPathError
from tests.nyx.path.networks import NOW, Member, entropy, network, spread


def test_a_guard_is_chosen_once_and_kept(tmp_path):
    file, snapshot = tmp_path / "guards", network(*spread(9, exit=False))
    first = keep_guard(file, snapshot, entropy(1), NOW)
    for seed in range(20):
        assert keep_guard(file, snapshot, entropy(seed), NOW + seed) == first
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_guard_that_left_or_is_too_old_is_replaced(tmp_path):
    file, snapshot = tmp_path / "guards", network(*spread(6, exit=False))
    save_guards(file, [Guard(bytes(32), NOW)])
    first = keep_guard(file, snapshot, entropy(1), NOW)
    assert snapshot.by_id(first.id)
    later = keep_guard(file, snapshot, entropy(2), NOW + LIFETIME)
    assert later.since == NOW + LIFETIME
    assert load_guards(file) == [later]


def test_the_first_guard_that_can_be_used_is_used():
    snapshot = network(*spread(3))
    ids = [n.id for n in snapshot.nodes]
    guards = [
        Guard(bytes(32), NOW),
        Guard(ids[0], NOW - LIFETIME),
        Guard(ids[1], NOW + CLOCK_BACK + 1),
        Guard(ids[2], NOW),
        Guard(ids[0], NOW),
    ]
    assert current_guard(guards, snapshot, NOW) == guards[3]
    early = Guard(ids[1], NOW + 3600)  # the clock was set back an hour
    assert current_guard([early, guards[3]], snapshot, NOW) == early
    assert current_guard([], snapshot, NOW) is None


def test_an_exit_is_a_guard_only_where_all_are_exits():
    members = [*spread(3), Member("11.0.0.1", exit=False)]
    assert not network(*members).by_id(choose_guard(network(*members), entropy(), NOW).id).exit
    assert choose_guard(network(*spread(3)), entropy(), NOW).since == NOW
    with pytest.raises(NoPathError):
        choose_guard(network(Member("127.0.0.1")), entropy(), NOW)


@pytest.mark.parametrize("text", ["x", "00 1", "zz 1", f"{'00' * 32}", f"{'00' * 32} x", "\xe9"])
def test_a_damaged_file_is_an_error_not_a_new_guard(tmp_path, text):
    file = tmp_path / "guards"
    file.touch(0o600)
    file.write_text(text, "latin-1")
    with pytest.raises(ConfigError, match="damaged"):
        load_guards(file)
