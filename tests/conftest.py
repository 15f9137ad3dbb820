"""What every test shares: one printed seed, generators that come from it, and Hypothesis without a clock.

A run replays from its seed: `NYX_SEED=12345 make test`; `NYX_SEED=random` draws one. No test uses a global generator.
"""

import os
import random
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
# Processes that tests start run the code of this tree, wherever another copy of it is installed.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: it starts threads on import
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", parent=settings.get_profile("ci"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

END_TO_END = "tests/e2e/"
_SEED = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Fix the run's seed; workers inherit it through the environment."""
    wanted = os.environ.get("NYX_SEED", "1")
    number = random.SystemRandom().getrandbits(32) if wanted == "random" else int(wanted)
    os.environ["NYX_SEED"] = str(number)
    config.stash[_SEED] = number


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in tests/e2e and begin with it: it takes longest."""
    for item in items:
        if item.nodeid.startswith(END_TO_END):
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: not item.nodeid.startswith(END_TO_END))


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist says nothing about its types
    """All of tests/e2e on one worker, as its networks share ports; the rest test function by test function."""

    def _split_scope(self, nodeid: str) -> str:
        return END_TO_END if nodeid.startswith(END_TO_END) else nodeid.partition("[")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Replace xdist's choice of who runs what."""
    config.option.loadscopereorder = False  # keep the order of pytest_collection_modifyitems
    return _Scheduling(config, log)


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed at the head of the run."""
    return f"seed: {config.stash[_SEED]} (NYX_SEED={config.stash[_SEED]} replays this run)"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return a seed of this test's own: from the run's seed and the test's name, so order and workers do not matter."""
    return zlib.crc32(request.node.nodeid.encode(), request.config.stash[_SEED] & 0xFFFFFFFF)


@pytest.fixture
def rng(seed: int) -> random.Random:
    """Return the test's own generator; `rng.randbytes(n)` is its entropy."""
    return random.Random(seed)
