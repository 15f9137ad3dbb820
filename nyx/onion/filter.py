"""The replay filter of a hop that is not the last: drops cells that it has passed on before.

Place on a packet's way: before "onion unwrap", data cells only. Without it a malicious neighbour marks a circuit by
repeating its cells. The ends of a circuit use the exact window instead (`nyx.onion.cell`). Source: docs/protocol.md,
"Replay filter".

SipHash-2-4 under a secret key over (circuit id, direction, the cell's first 16 bytes as received) gives 64 bits: the low 32
are the fingerprint (0 becomes 1; 0 is an empty place), the high 32 choose the bucket. A generation is a cuckoo table: buckets
of 4 fingerprints, the second bucket of a fingerprint is the first XOR a hash of the fingerprint, so that an entry can move
without its cell. Two generations: lookups read both, new entries go to the current one. They turn every 50 s, and early when
an entry finds no place after KICKS moves: what is left over is kept beside the table, so a full table shortens the
memory and never passes a repeated cell silently. A cell is remembered for at least one generation. False drops: at most 16
comparisons of 32 bits, 2^-28, and 2^-29 while the older generation is at rest.

A new generation has room for half as many cells again as the rate of the one before would bring in its whole time, and after an
early turn for twice as many at least. So an idle relay holds little, and a busy one is seldom caught by surprise. Each generation
has its own half of the table, of which it uses the beginning.

One worker writes it. A kill in the middle of a move can lose that one fingerprint.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column, Columns
from nyx.crypto.scratch import SCRATCH_SHORT
from nyx.crypto.sodium import SIPHASH_KEY, SIPHASH_SIZE, memzero, siphash24
from nyx.kernel import Int, address, inline, load_word, prefetch, store_word, swap_word
from nyx.wire.geometry import CELL_LEFT_SIZE, CIRCUIT_ID_SIZE

GENERATION_NS: Final = 50_000_000_000  # longer than any layer epoch opens (docs/protocol.md, "Layer epochs")
BUCKET: Final = 4  # fingerprints in a bucket: 95 % of the places fill before an insertion fails
KICKS: Final = 256  # moves before a table counts as full
SMALLEST: Final = 1 << 14  # buckets of a generation on an idle relay: 62,000 cells, 256 KiB
LARGEST: Final = 1 << 24  # 63 million cells, 256 MiB
_BUCKET_SIZE: Final = 4 * BUCKET  # bytes

FILTER: Final = np.dtype(
    [
        ("turned", "i8"),  # monotonic ns of the last turn; 0 before the first cell
        ("current", "i8"),  # generation that takes new entries, 0 or 1
        ("buckets", "i8", (2,)),  # of each generation, a power of two
        ("lasts", "i8"),  # ns of a generation
        ("most", "i8"),  # buckets that a generation may have at most
        ("left_over", "i8"),  # what found no place in the older one: its bucket << 32 | fingerprint; 0 for nothing
        ("count", "i8"),  # entries in it
        ("turns", "i8"),
        ("early", "i8"),  # turns because the table was full
        ("seen", "i8"),  # cells found to be repeated
        ("key", "u1", (SIPHASH_KEY,)),
    ],
    align=True,
)
_FIELDS: Final[Any] = FILTER.fields
_KEY: Final = int(_FIELDS["key"][1])
_INPUT: Final = CIRCUIT_ID_SIZE + 1 + CELL_LEFT_SIZE
_SPREAD: Final = 0x5BD1E995  # odd: spreads a fingerprint over the bucket numbers

Bytes = NDArray[np.uint8]
Table = NDArray[np.uint32]
State = NDArray[Any]


def filter_columns(buckets: int) -> list[Column]:
    """Columns of a filter whose generations have at most this many buckets, a power of two up to 2^24; 32 bytes each for both.

    Memory is touched, and so committed, only as generations use it.
    """
    if not 2 <= buckets <= LARGEST or buckets & (buckets - 1):
        raise ValueError(f"{buckets} buckets: not a power of two from 2 to 2^24")
    return [Column("filter", FILTER, 1), Column("filter_table", np.dtype("u4"), 2 * buckets * BUCKET)]


def start_filter(columns: Columns, entropy: Callable[[int], bytes], most: int = LARGEST, lasts: int = GENERATION_NS) -> None:
    """Draw the filter's key and make its first generation, if it has none yet; a worker that starts on a living table keeps it.

    `most`: buckets that a generation may have from now on, where the columns have room for more; `lasts`: its ns.
    """
    state = columns["filter"][0]
    room = len(columns["filter_table"]) // (2 * BUCKET)
    state["lasts"] = lasts
    state["most"] = min(room, 1 << max(most, 2).bit_length() - 1)
    if not state["key"].any():
        state["buckets"] = min(SMALLEST, int(state["most"]))
        state["key"] = np.frombuffer(entropy(SIPHASH_KEY), np.uint8)


def unused_parts(columns: Columns) -> list[NDArray[np.uint32]]:
    """The parts of the table that no generation reads: what stands there is of earlier ones."""
    table, half = columns["filter_table"], len(columns["filter_table"]) // 2
    used = [int(buckets) * BUCKET for buckets in columns["filter"][0]["buckets"]]
    return [table[used[0] : half], table[half + used[1] :]]


@inline
def _other(bucket: Int, fingerprint: Int, buckets: Int) -> Int:
    """The other bucket of a fingerprint; its own inverse, and never the same bucket."""
    spread = (fingerprint * _SPREAD & 0xFFFFFFFF) ^ (fingerprint >> 15)
    return bucket ^ ((spread & (buckets - 1)) | 1)


@inline
def _holds(table: Table, base: Int, fingerprint: Int) -> Int:
    found: Int = 0
    for i in range(BUCKET):
        found |= np.int64(np.int64(table[base + i]) == fingerprint)
    return found


@inline
def _place(table: Table, base: Int, fingerprint: Int) -> Int:
    """Put a fingerprint into an empty place of this bucket: 1, or 0 when there is none."""
    for i in range(BUCKET):
        if table[base + i] == 0:
            table[base + i] = fingerprint
            return 1
    return 0


@inline
def _insert(table: Table, start: Int, buckets: Int, bucket: Int, fingerprint: Int) -> Int:
    """Insert into the generation at `start`. Returns 0, or what found no place in the end: its bucket << 32 | fingerprint.

    Which entry of a full bucket moves follows from the moves so far: no randomness, and no place is favoured.
    """
    at = np.int64(bucket)
    hand = np.int64(fingerprint)
    if _place(table, start + at * BUCKET, hand) or _place(table, start + _other(at, hand, buckets) * BUCKET, hand):
        return np.int64(0)
    for kick in range(KICKS):
        place = start + at * BUCKET + (hand + kick) % BUCKET
        moved = np.int64(table[place])
        table[place] = hand
        hand = moved
        at = _other(at, hand, buckets)
        if _place(table, start + at * BUCKET, hand):
            return np.int64(0)
    return at << 32 | hand


@inline
def _size(state: State, now: Int, early: Int) -> Int:
    """Buckets of the next generation, from the rate of the one that ends; after an early turn twice as many as it had."""
    most = np.int64(state[0]["most"])
    lasted = max(now - np.int64(state[0]["turned"]), np.int64(1))
    expected = min(np.int64(state[0]["count"]) * np.int64(state[0]["lasts"]) // lasted, most * BUCKET)
    wanted = expected * 2 // 5  # half as many again, 3.75 to a bucket
    if early != 0:
        wanted = max(wanted, 2 * np.int64(state[0]["buckets"][np.int64(state[0]["current"])]))
    buckets = min(np.int64(SMALLEST), most)
    while buckets < wanted and buckets < most:
        buckets *= 2
    return buckets


@inline
def _turn(state: State, table: Table, now: Int, left_over: Int) -> Int:
    """Forget the older generation and begin a new one in its place, early if something is left over; returns its start.

    The commit is `current`: a kill before it has forgotten the older generation and leaves the newer one in force.
    """
    half = np.int64(table.size) // 2
    current = 1 - np.int64(state[0]["current"])
    early = np.int64(left_over != 0)
    buckets = _size(state, now, early)
    state[0]["buckets"][current] = buckets
    table[current * half : current * half + buckets * BUCKET] = 0
    state[0]["left_over"] = left_over
    state[0]["turned"] = now
    state[0]["count"] = 0
    state[0]["current"] = current
    state[0]["turns"] += 1
    state[0]["early"] += early
    return current * half


@inline
def filter_value(state: State, circuit_id: Int, direction: Int, pool: Bytes, at: Int, scratch: Bytes) -> Int:
    """Hash what names the cell on this hop; 64 bits, as int64."""
    out = address(scratch) + SCRATCH_SHORT
    data = out + SIPHASH_SIZE
    cell = address(pool) + at
    store_word(data, swap_word(np.int64(circuit_id) << 32 | np.int64(direction) << 24))
    store_word(data + CIRCUIT_ID_SIZE + 1, load_word(cell))
    store_word(data + CIRCUIT_ID_SIZE + 9, load_word(cell + 8))
    siphash24(out, data, _INPUT, address(state) + _KEY)
    value = load_word(out)
    memzero(out, SIPHASH_SIZE + _INPUT)
    return np.int64(value)


@inline
def _found(table: Table, start: Int, buckets: Int, value: Int, fingerprint: Int) -> Int:
    """Whether the generation at `start` holds the fingerprint."""
    bucket = value >> 32 & (buckets - 1)
    other = _other(bucket, fingerprint, buckets)
    return _holds(table, start + bucket * BUCKET, fingerprint) | _holds(table, start + other * BUCKET, fingerprint)


@inline
def _is_left_over(state: State, value: Int, fingerprint: Int) -> Int:
    """Whether it is the entry that found no place in the older generation."""
    kept = np.int64(state[0]["left_over"])
    buckets = np.int64(state[0]["buckets"][1 - np.int64(state[0]["current"])])
    bucket = value >> 32 & (buckets - 1)
    at_home = (kept >> 32 == bucket) | (kept >> 32 == _other(bucket, fingerprint, buckets))
    return np.int64((kept & 0xFFFFFFFF == fingerprint) & at_home)


@inline
def _fetch(table: Table, start: Int, buckets: Int, value: Int, fingerprint: Int) -> None:
    bucket = value >> 32 & (buckets - 1)
    base = address(table) + 4 * start
    prefetch(base + _BUCKET_SIZE * bucket)
    prefetch(base + _BUCKET_SIZE * _other(bucket, fingerprint, buckets))


@inline
def filter_fetch(state: State, table: Table, value: Int) -> None:
    """Let the four cache lines that `filter_seen` will read for this value come near: they are seldom there."""
    half = np.int64(table.size) // 2
    fingerprint = max(value & 0xFFFFFFFF, np.int64(1))
    _fetch(table, 0, np.int64(state[0]["buckets"][0]), value, fingerprint)
    _fetch(table, half, np.int64(state[0]["buckets"][1]), value, fingerprint)


@inline
def filter_seen(state: State, table: Table, value: Int, now: Int) -> Int:
    """Say whether the data cell of this `filter_value` has passed this hop before (1), and remember it if not (0)."""
    half = np.int64(table.size) // 2
    fingerprint = max(value & 0xFFFFFFFF, np.int64(1))
    start = np.int64(state[0]["current"]) * half
    if np.int64(state[0]["turned"]) == 0:
        state[0]["turned"] = now
    elif now - np.int64(state[0]["turned"]) >= np.int64(state[0]["lasts"]):
        start = _turn(state, table, now, 0)
    if (
        _found(table, 0, np.int64(state[0]["buckets"][0]), value, fingerprint)
        | _found(table, half, np.int64(state[0]["buckets"][1]), value, fingerprint)
        | _is_left_over(state, value, fingerprint)
    ):
        state[0]["seen"] += 1
        return np.int64(1)
    buckets = np.int64(state[0]["buckets"][np.int64(state[0]["current"])])
    left_over = _insert(table, start, buckets, value >> 32 & (buckets - 1), fingerprint)
    state[0]["count"] += 1
    if left_over != 0:
        _turn(state, table, now, left_over)
    return np.int64(0)
