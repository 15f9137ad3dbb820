"""Proof of work: found in slices, checked by one hash, good for one record, one hop and one directory epoch."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nyx.crypto.kem import x25519_public
from nyx.onion.work import SLICE, Work, bits_of


def finish(work, slices=10_000):
    for _ in range(slices):
        if work.done:
            return work.proofs
        work.advance()
    raise AssertionError("not found")


def twin(x, work, node, epoch):
    """Leading zeros of the digest, counted as text."""
    digest = hashlib.sha256(x + work + node + epoch.to_bytes(8, "big")).hexdigest()
    text = f"{int(digest, 16):0256b}"
    return len(text) - len(text.lstrip("0"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=7), st.integers(0, 1 << 62), st.randoms(use_true_random=False))
def test_each_hop_gets_what_it_asks(efforts, epoch, rng):
    nodes = [rng.randbytes(32) for _ in efforts]
    proofs = finish(Work(nodes, efforts, epoch, rng.randbytes))
    for node, effort, proof in zip(nodes, efforts, proofs, strict=True):
        x = x25519_public(proof.x)
        assert bits_of(x, proof.work, node, epoch) == twin(x, proof.work, node, epoch) >= effort
    assert len({proof.x for proof in proofs}) == len(proofs)


def test_a_proof_is_good_for_nothing_else(rng):
    nodes = [rng.randbytes(32) for _ in range(2)]
    [proof] = finish(Work(nodes[:1], [14], 5, rng.randbytes))
    x = x25519_public(proof.x)
    assert bits_of(x, proof.work, nodes[0], 5) >= 14
    others = [(rng.randbytes(32), nodes[0], 5), (x, nodes[1], 5), (x, nodes[0], 6)]
    assert all(bits_of(x, proof.work, node, epoch) < 14 for x, node, epoch in others)


def test_work_of_many_hashes_takes_many_slices(rng):
    work, slices = Work([rng.randbytes(32)] * 8, [11] * 8, 1, rng.randbytes), 0
    while not work.done:
        work.advance()
        slices += 1
    assert slices * SLICE >= 8 * 2**11 // 4


@pytest.mark.parametrize("bits", [0, 1, 7, 8, 9, 16])
def test_bytes_and_bits_are_counted_alike(rng, bits):
    [proof] = finish(Work([bytes(32)], [bits], 0, rng.randbytes))
    assert bits_of(x25519_public(proof.x), proof.work, bytes(32), 0) >= bits
