"""Files for other programs, as they are installed: rules for Prometheus and a dashboard for Grafana.

Every expression in them names metrics of control/metrics/families.py and rules of its own; tests check each.
"""

from importlib.resources import files
from typing import Final

FILES: Final = {"rules": "rules.yml", "dashboard": "dashboard.json"}


def read(name: str) -> str:
    """Content of a file by its short name. Raises KeyError."""
    return files(__name__).joinpath(FILES[name]).read_text("utf-8")
