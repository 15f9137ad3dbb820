"""The bench of both edges as a fixture."""

import pytest

from tests.shards.edge.bench import bench


@pytest.fixture
def net():
    """Return two edges joined back to back."""
    with bench() as made:
        yield made
