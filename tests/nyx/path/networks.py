"""Small networks for the tests of this room: real keys, real signatures, chosen addresses, families, flags and weights."""

import random
from dataclasses import dataclass, field
from typing import Any

from nyx.crypto.keys import StaticKeys
from nyx.path.cbor import identity_of
from nyx.path.descriptor import Descriptor
from nyx.path.directory import build_snapshot, verify

START, END = 1_000_000, 2_000_000
NOW = 1_500_000
AUTHORITY = b"\x07" * 32
SIGNER = identity_of(AUTHORITY)


def entropy(seed=0):
    return random.Random(seed).randbytes


@dataclass
class Member:
    """How one node of a test network differs from the others."""

    address: str
    exit: bool = True
    family: str = ""
    weight: int = 100
    keys: StaticKeys | None = field(repr=False, default=None)
    link_suites: tuple[int, ...] = (1, 2, 3)
    layer_suites: tuple[int, ...] = (1, 2)


def descriptor(keys, member, alias="node", **changes):
    values: dict[str, Any] = {
        "alias": alias,
        "family": member.family,
        "public": keys.public,
        "addresses": ((member.address, 43300),),
        "flags": ("exit",) if member.exit else (),
        "link_suites": member.link_suites,
        "layer_suites": member.layer_suites,
        "sequence": 1,
        "valid_from": START,
        "valid_until": END,
    }
    return Descriptor(**(values | changes))


def records(members):
    random_bytes = entropy(1)
    for i, member in enumerate(members):
        keys = member.keys or StaticKeys.generate(random_bytes)
        yield descriptor(keys, member, f"node-{i}").sign(keys), member.weight


def signed(members, seeds=(AUTHORITY,), **changes):
    values: dict[str, Any] = {"network": "test", "sequence": 5, "valid_from": START, "valid_until": END}
    return build_snapshot(list(records(members)), list(seeds), **(values | changes))


def network(*members):
    return verify(signed(members), [SIGNER], 1, NOW)


def spread(count, **changes):
    """Members in as many networks."""
    return [Member(f"10.{i}.0.1", **changes) for i in range(count)]
