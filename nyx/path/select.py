"""Choosing the hops of a circuit: weighted, diverse, with the guard first and an exit last.

Rules, all of them absolute: the last hop has the exit flag; hops are distinct; no two share a family or a network (/16 of IPv4,
/32 of IPv6); nodes on loopback addresses are used only where the configuration allows test networks, and their network counts
for nothing. The weights are the signers' measurements, and no operator draws more than 1 % (or an equal share of fewer than
a hundred). Entropy is an argument, so a seed replays a choice.
"""

import ipaddress
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Final

from nyx.errors import NyxError
from nyx.path.descriptor import Address
from nyx.path.directory import Node, Snapshot
from nyx.wire.geometry import HOPS_MAX, HOPS_MIN

Entropy = Callable[[int], bytes]

OPERATOR_SHARE: Final = 100  # an operator's weight is at most one part in this many of the whole
_SCALE: Final = 1 << 20  # fine enough that cutting an operator keeps the proportions of his nodes
_TRIES_MAX: Final = 2_000  # draws before a search gives up: bounds the time of a choice in a network that cannot serve it


class NoPathError(NyxError):
    """The network as it is known has no path of this kind."""


def select_path(
    snapshot: Snapshot,
    hops: int,
    entropy: Entropy,
    guard: bytes | None = None,
    exclude: Collection[bytes] = frozenset(),
    *,
    avoid: Collection[frozenset[bytes]] = frozenset(),
    allow_loopback: bool = False,
) -> list[Node]:
    """Nodes from the first hop to the last. `guard` is the node id of the first hop; `exclude` are ids never to be used.

    `avoid`: sets of ids that are no path, in any order. A path of one hop is its exit; a guard counts only where there are more.
    Raises NoPathError.
    """
    if not HOPS_MIN <= hops <= HOPS_MAX:
        raise NoPathError(f"a path has {HOPS_MIN} to {HOPS_MAX} hops, not {hops}")
    nodes = usable(snapshot, exclude, allow_loopback=allow_loopback)
    places = [[node for node in nodes if node.exit]]  # the scarce place is filled first, then the first hop, then the others
    if hops > 1:
        places.append([node for node in nodes if guard is None or node.id == guard])
        places.extend([nodes] * (hops - 2))
        if guard is not None and not places[1]:
            raise NoPathError("the guard is not in the directory any more, or is excluded")
    if len(nodes) < hops:
        raise NoPathError(f"{hops} hops need {hops} relays, {len(nodes)} can be used")
    chosen = _search(places, shares(nodes), entropy, avoid)
    last, *others = chosen
    return [*others, last]


def usable(snapshot: Snapshot, exclude: Collection[bytes] = frozenset(), *, allow_loopback: bool = False) -> list[Node]:
    """Nodes that a path may use at all."""
    return [n for n in snapshot.nodes if n.weight > 0 and n.id not in exclude and (allow_loopback or not _loopback(n))]


def conflict(one: Node, other: Node) -> bool:
    """Whether two nodes may not stand on one path: the same node, operator or network."""
    if one.id == other.id or (one.descriptor.family and one.descriptor.family == other.descriptor.family):
        return True
    return not _networks(one).isdisjoint(_networks(other))


def shares(nodes: Sequence[Node]) -> dict[bytes, int]:
    """The weight with which each node is drawn: as measured, scaled down where its operator would exceed its share."""
    totals: dict[str | bytes, int] = {}
    for node in nodes:
        totals[_operator(node)] = totals.get(_operator(node), 0) + node.weight
    cap = _cap(sorted(totals.values()))
    return {n.id: n.weight * _SCALE * min(cap, totals[_operator(n)]) // totals[_operator(n)] or 1 for n in nodes}


def draw(nodes: Sequence[Node], weights: dict[bytes, int], entropy: Entropy) -> int:
    """Index of one node, drawn by weight, without bias."""
    point = _below(sum(weights[node.id] for node in nodes), entropy)
    for i, node in enumerate(nodes):
        point -= weights[node.id]
        if point < 0:
            return i
    raise AssertionError("a point below the sum lies within it")


def _search(
    places: list[list[Node]], weights: dict[bytes, int], entropy: Entropy, avoid: Collection[frozenset[bytes]]
) -> list[Node]:
    """One node for each place, no two in conflict: weighted draws, and steps back where a draw leads nowhere."""
    chosen: list[Node] = []
    left = [list(places[0])]
    for _ in range(_TRIES_MAX):
        if not left[-1]:
            left.pop()
            if not left:
                break
            chosen.pop()
            continue
        chosen.append(left[-1].pop(draw(left[-1], weights, entropy)))
        if len(chosen) == len(places):
            if not avoid or frozenset(node.id for node in chosen) not in avoid:
                return chosen
            chosen.pop()
            continue
        left.append([node for node in places[len(chosen)] if not any(conflict(node, c) for c in chosen)])
    raise NoPathError(f"no {len(places)} relays of different operators and networks, the last of them an exit, can be found")


def _cap(totals: list[int]) -> int:
    """The largest weight c with c <= 1 / OPERATOR_SHARE of the sum of all weights cut to c; `totals` is sorted."""
    if len(totals) <= OPERATOR_SHARE:
        return totals[0] if totals else 0  # no cap can be met: equal shares
    below = 0
    for i, total in enumerate(totals):
        cut = len(totals) - i  # operators from here on are cut to the cap
        if cut >= OPERATOR_SHARE:
            below += total
            continue
        cap = below // (OPERATOR_SHARE - cut)
        if cap < total:
            return max(cap, 1)
        below += total
    return totals[-1]


def _operator(node: Node) -> str | bytes:
    return node.descriptor.family or node.id


def _loopback(node: Node) -> bool:
    return any(ipaddress.ip_address(address).is_loopback for address, _ in node.addresses)


def _networks(node: Node) -> frozenset[bytes]:
    return _networks_of(node.addresses)


@lru_cache(maxsize=1 << 16)
def _networks_of(addresses: tuple[Address, ...]) -> frozenset[bytes]:
    packed = (ipaddress.ip_address(address) for address, _ in addresses)
    return frozenset(a.packed[: 2 if a.version == 4 else 4] + bytes((a.version,)) for a in packed if not a.is_loopback)


def _below(bound: int, entropy: Entropy) -> int:
    size = (bound.bit_length() + 7) // 8
    limit = (1 << (8 * size)) // bound * bound
    while True:
        value = int.from_bytes(entropy(size), "big")
        if value < limit:
            return value % bound
