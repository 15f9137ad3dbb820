"""Nothing is left of the keys of circuits and links that have ended, in any process's memory."""

from pathlib import Path

import pytest

from bench.attack import wiped
from bench.network import running_network

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_keys_of_ended_circuits_and_links_are_nowhere(tmp_path: Path) -> None:
    with running_network(tmp_path, "--set", "node.inspect=true") as network:
        wiped.use(network)
        found = wiped.search(network)
    assert found.ended["layer keys"] > 100
    assert found.ended["session keys"] > 10
    assert found.searched > 100 << 20
    assert not found.copies
