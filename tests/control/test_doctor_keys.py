"""nyxctl doctor on a relay's own keys: lost, open to others, not those of the directory, about to end."""

import random
import time

import pytest

from control.doctor.keys import own_keys
from control.schemas import Check
from nyx.config import load
from nyx.crypto.keyfile import save_keys
from nyx.crypto.keys import StaticKeys
from nyx.path.directory import build_snapshot
from tests.nyx.path.networks import AUTHORITY, SIGNER, Member, descriptor

DAY = 86400


@pytest.fixture
def keys():
    return StaticKeys.generate(random.Random(1).randbytes)


@pytest.fixture
def config(tmp_path, keys):
    """A relay's configuration; its keys are in place, and there is no directory yet."""
    state = tmp_path / "state"
    state.mkdir(0o700)
    save_keys(state / "keys", keys)
    file = tmp_path / "nyx.toml"
    file.write_text(
        f'[node]\nrole = "relay"\nstate_dir = "{state}"\nrun_dir = "{tmp_path}/run"\n[exit]\n'
        f'[directory]\nfile = "{tmp_path}/network"\nsigners = ["{SIGNER.hex()}"]\n'
    )
    return load(file, environ={})


def publish(config, keys, age=1, life=10):
    """A directory with a descriptor of these keys, `age` days into its life."""
    now = int(time.time())
    start = now - age * DAY
    record = descriptor(keys, Member("10.0.0.1"), valid_from=start, valid_until=start + life * DAY).sign(keys)
    data = build_snapshot([(record, 100)], [AUTHORITY], network="test", sequence=1, valid_from=now - 60, valid_until=now + DAY)
    config.directory.file.write_bytes(data)


def checked(config) -> Check:
    found = own_keys(config)
    assert found
    return found


def test_keys_that_the_directory_has_are_well(config, keys):
    publish(config, keys)
    check = checked(config)
    assert (check.name, check.state, check.fix) == ("keys", "ok", "")
    assert keys.public.node_id.hex() in check.text
    assert "valid for 216.0 h" in check.text


def test_a_descriptor_near_its_end_is_told(config, keys):
    publish(config, keys, age=19, life=20)
    check = checked(config)
    assert check.state == "warn"
    assert "24.0 h" in check.text


def test_a_node_that_the_directory_does_not_have_is_told(config):
    publish(config, StaticKeys.generate(random.Random(2).randbytes))
    check = checked(config)
    assert (check.state, "not in the directory" in check.text) == ("warn", True)


def test_other_keys_under_the_same_name_fail(config, keys):
    other = StaticKeys.generate(random.Random(2).randbytes)
    publish(config, StaticKeys(keys.identity_seed, other.link, keys.onion))
    assert checked(config).state == "fail"


def test_keys_that_are_lost_or_open_fail_with_the_way_out(config):
    config.key_file.chmod(0o640)
    check = checked(config)
    assert (check.state, "chmod 600" in check.text) == ("fail", True)
    config.key_file.unlink()
    check = checked(config)
    assert (check.state, "there are no keys" in check.text) == ("fail", True)
    assert "restore" in check.fix


def test_without_a_directory_the_keys_are_not_judged(config):
    assert own_keys(config) is None
