"""Suites of whole nodes without sockets: the fastest of both ends, and none that a descriptor does not name or cannot have."""

import pytest

from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_AEGIS256, SUITE_CHACHA
from shards.sessions import offered_suites
from shards.tables import ROLE_CLIENT
from tests.shards.small_network import Network

ALL = (SUITE_AEGIS128L, SUITE_AEGIS256, SUITE_CHACHA)


def chosen(net):
    """Suites of all links, and that of the client's circuit once it is ready."""
    net.run(1)
    client = net.clients[0]
    [circuit] = client.desk.clients.all
    assert circuit.ready
    [row] = client.circuits(ROLE_CLIENT)
    links = {link.suite for node in [client, *net.relays] for link in node.links.all()}
    return links, int(client.columns["circuits"][row]["suite"])


@pytest.mark.parametrize(
    ("prefer", "available", "offered"),
    [
        ("auto", ALL, [2, 3, 1]),
        ("aegis128l", ALL, [2, 3, 1]),
        ("aegis256", ALL, [3, 1]),
        ("chacha20poly1305", ALL, [1]),
        ("aegis256", [SUITE_CHACHA], [1]),
        ("auto", [SUITE_CHACHA], [1]),
    ],
)
def test_what_is_offered_is_what_the_operator_wants_and_the_processor_has(prefer, available, offered):
    assert offered_suites(prefer, available) == offered


def test_nodes_that_have_all_take_the_fastest(rng, tmp_path):
    assert chosen(Network(rng, tmp_path, relays=4, ahead=1, suites=ALL)) == ({SUITE_AEGIS128L}, SUITE_AEGIS128L)


def test_who_prefers_aegis_256_has_it_on_links_and_no_128_bit_key_in_layers(rng, tmp_path):
    assert chosen(Network(rng, tmp_path, relays=4, ahead=1, suites=(SUITE_AEGIS256, SUITE_CHACHA))) == (
        {SUITE_AEGIS256},
        SUITE_CHACHA,
    )


def test_a_suite_that_the_descriptor_does_not_name_is_not_used(rng, tmp_path):
    net = Network(rng, tmp_path, relays=4, ahead=1, suites=(SUITE_AEGIS256, SUITE_CHACHA), link_suites=(1, 2))
    assert chosen(net) == ({SUITE_CHACHA}, SUITE_CHACHA)


def test_a_layer_that_does_not_exist_is_not_chosen_whoever_claims_it(rng, tmp_path):
    net = Network(rng, tmp_path, relays=4, ahead=1, suites=ALL, layer_suites=(1, 3))
    assert chosen(net) == ({SUITE_AEGIS128L}, SUITE_CHACHA)
