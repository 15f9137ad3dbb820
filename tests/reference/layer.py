"""The onion layer and its inverse, from the formulas of docs/protocol.md."""

from tests.reference import primitives as p

CHACHA, AEGIS = 1, 2
KEY_SIZES = {CHACHA: 176, AEGIS: 80}


def tweak(direction: int, kind: int, slot: int, epoch: int) -> bytes:
    return bytes([direction, kind, slot]) + epoch.to_bytes(5, "big") + bytes(8)


def _steps(suite: int, key: bytes, t: bytes):
    """The four functions whose outputs are XORed: of L into R[0:16], of R into L, of L into R, of R into L."""
    k1, rest = key[:16], key[16:]
    if suite == AEGIS:
        k2, k3, k4, k5 = (rest[i : i + 16] for i in range(0, 64, 16))
        return (
            lambda left: p.siphash(k1, left, 16),
            lambda right: p.siphash(k3, p.aegis128l_seal(k2, t, b"", right)[1], 16),
            lambda left: p.aegis128l_seal(k4, left, bytes(1208), b"")[0],
            lambda right: p.aegis128l_seal(k5, t, b"", right)[1][:16],
        )
    k2, k3, k4, k5, k6 = (rest[i : i + 32] for i in range(0, 160, 32))
    constant = p.xor(b"expand 32-byte k", t)
    return (
        lambda left: p.siphash(k1, left, 16),
        lambda right: p.hchacha20(k3, p.poly1305(k2, right), constant)[:16],
        lambda left: p.chacha20_xor(p.hchacha20(k4, left), bytes(12), bytes(1208)),
        lambda right: p.hchacha20(k6, p.poly1305(k5, right), constant)[:16],
    )


def layer(cell: bytes, suite: int, key: bytes, t: bytes) -> bytes:
    first, second, third, fourth = _steps(suite, key, t)
    left, right = cell[:16], cell[16:]
    right = p.xor(right[:16], first(left)) + right[16:]
    left = p.xor(left, second(right))
    right = p.xor(right, third(left))
    left = p.xor(left, fourth(right))
    return left + right


def unlayer(cell: bytes, suite: int, key: bytes, t: bytes) -> bytes:
    first, second, third, fourth = _steps(suite, key, t)
    left, right = cell[:16], cell[16:]
    left = p.xor(left, fourth(right))
    right = p.xor(right, third(left))
    left = p.xor(left, second(right))
    right = p.xor(right[:16], first(left)) + right[16:]
    return left + right
