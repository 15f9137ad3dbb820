"""The JSON object around every message between processes of one node: a version, an id, and a size that is bounded.

Place on a packet's way: none. What stands in the object is defined by `nyx/wire/admin.py` and `nyx/wire/orders.py`.
"""

import json
import math
from typing import Any, Final

from nyx.errors import RemoteProtocolError

VERSION: Final = 1
MESSAGE_MAX: Final = 65536  # bytes of one message; far below a channel's send buffer of 208 KiB


def dump(value: Any) -> bytes:
    """The message of an object."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def load(message: bytes) -> dict[str, Any]:
    """The object in a message, its version and id checked. Raises RemoteProtocolError."""
    if len(message) > MESSAGE_MAX:
        raise RemoteProtocolError(f"a message of {len(message)} bytes is above {MESSAGE_MAX}")
    try:
        value = json.loads(message, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("not JSON") from error
    if not isinstance(value, dict) or value.get("v") != VERSION:
        raise RemoteProtocolError(f"not an object of version {VERSION}")
    if type(value.get("id")) is not int:
        raise RemoteProtocolError("a message needs an integer id")
    return value


def _finite(text: str) -> float:
    """A number that JSON has: Python's reader would take NaN, Infinity and 1e999, which `dump` cannot write."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a number of JSON")
    return number
