"""Layer epochs of whole nodes without sockets: streams run on over many marks, whoever dies, and with packets lost."""

import numpy as np
import pytest

from nyx.onion import ratchet
from nyx.onion.ratchet import MOVED_BITS
from nyx.stats import Counter
from nyx.stream import columns as c
from nyx.wire.codes import Drop
from nyx.wire.geometry import LAYER_KEY_MAX
from shards.tables import BACK, FORTH, ROLE_CLIENT, ROLE_LAST
from tests.shards.small_network import MS, RING, SECOND, Network

STEP = 25 * MS
CHUNK = 300


@pytest.fixture
def net(rng, tmp_path):
    """A client with one circuit over three relays."""
    net = Network(rng, tmp_path, ahead=1)
    net.run(1)
    net.clients[0].path.circuits_ahead = 0
    return net


def everybody(net):
    return [*net.clients, *net.relays]


def epochs(net):
    """The epoch of each direction at each node: client, then the hops as they were started."""
    found = []
    for node in everybody(net):
        [row] = node.circuits()
        found.append(tuple(int(word) >> MOVED_BITS for word in node.columns["layer_epochs"]["now"][2 * row : 2 * row + 2]))
    return found


def trouble(net):
    """Cells that somebody could not open, by node."""
    codes = (Drop.BAD_CELL, Drop.OLD_EPOCH, Drop.BAD_ZEROS, Drop.BAD_HEADER, Drop.REPEATED_CELL)
    return {(i, code.name): node.drops(code) for i, node in enumerate(everybody(net)) for code in codes if node.drops(code)}


class Talk:
    """A stream that carries a little data both ways again and again, and checks all of it."""

    def __init__(self, net, rng):
        self.net, self.rng, self.client = net, rng, net.clients[0]
        connection = self.client.desk.clients.connection_for(b"key", net.now)
        self.row = self.client.streams.open_stream(connection, 1, "a.example", 80, net.now)
        self.last = next(relay for relay in net.relays if relay.circuits(ROLE_LAST))
        self.sent, self.received = [bytearray(), bytearray()], [bytearray(), bytearray()]
        self.speak(0)
        net.run(0.5)
        [self.peer] = np.flatnonzero(self.last.columns["streams"]["state"] == c.OPENING).tolist()
        self.last.streams.answer_open(self.peer, 0)

    def ends(self):
        return (self.client, self.row), (self.last, self.peer)

    def speak(self, way):
        node, row = (self.client, self.row) if way == 0 else (self.last, self.peer)
        data = self.rng.randbytes(self.rng.randrange(1, CHUNK))
        s = node.streams.streams[row]
        at = int(s["tx_head"])
        for k, byte in enumerate(data):
            node.streams.tx[row * RING + (at + k) % RING] = byte
        s["tx_head"] = at + len(data)
        node.streams.moved(np.array([row], np.int64), 1)
        self.sent[way] += data

    def listen(self, way):
        node, row = self.ends()[1 - way]
        s = node.streams.streams[row]
        while int(s["rx_tail"]) < int(s["rx_ready"]):
            self.received[way].append(int(node.streams.rx[row * RING + int(s["rx_tail"]) % RING]))
            s["rx_tail"] += 1

    def run(self, seconds, pause=0.5):
        end = self.net.now + int(seconds * SECOND)
        while self.net.now < end:
            for way in (0, 1):
                self.speak(way)
            self.net.run(pause, STEP)
            for way in (0, 1):
                self.listen(way)

    def check(self):
        self.net.run(3, STEP)
        for way in (0, 1):
            self.listen(way)
            assert self.received[way] == self.sent[way]


def test_a_stream_runs_on_over_many_epochs_and_no_byte_is_lost(net, rng):
    talk = Talk(net, rng)
    talk.run(190)
    talk.check()
    found = epochs(net)
    assert len(set(found)) == 1, "all hops are in the same epochs"
    assert min(found[0]) >= 6
    assert not trouble(net)
    moves = [int(node.statistics[Counter.LAYER_MOVES]) for node in everybody(net)]
    assert moves == [sum(found[0])] * 4


def test_an_idle_circuit_ratchets_too(net):
    net.run(160, SECOND // 10)
    found = epochs(net)
    assert len(set(found)) == 1
    assert min(found[0]) >= 4
    assert not trouble(net)


def test_all_circuits_move_at_the_marks_and_a_little_later_each(rng, tmp_path):
    net = Network(rng, tmp_path, ahead=6, relays=4)
    net.run(5)
    node = net.clients[0]
    rows = node.circuits(ROLE_CLIENT)
    assert len(rows) == 6
    seen = []
    before = node.columns["layer_epochs"]["now"].copy()
    for _ in range(2400):
        net.tick(STEP)
        now = node.columns["layer_epochs"]["now"]
        for row in rows:
            if now[2 * row + FORTH] != before[2 * row + FORTH]:
                seen += [(net.now - STEP - 1000 * SECOND) / SECOND + net.wall]
        before = now.copy()
    after = [moment % 30 for moment in seen]
    assert len(seen) >= 12
    assert all(0 <= moment <= 2.1 for moment in after)
    assert len({round(moment, 2) for moment in after}) > 3


def test_keys_of_an_epoch_are_gone_after_the_gap_and_those_of_the_next_are_not_there(net):
    net.run(100, SECOND // 10)
    for node in everybody(net):
        hops = node.columns["layer_keys"].reshape(-1, ratchet.HOP_KEYS)[:, : 2 * ratchet.CHAIN_KEYS]
        keys = hops.reshape(-1, ratchet.CHAIN_KEYS)
        held = keys[keys.any(axis=1)]
        size = LAYER_KEY_MAX
        even, odd = held[:, :size].any(axis=1), held[:, size : 2 * size].any(axis=1)
        seeds = held[:, 2 * size : 2 * size + 32].any(axis=1), held[:, 2 * size + 32 : 2 * size + 64].any(axis=1)
        assert (seeds[0] != seeds[1]).all(), "one seed, that of the current epoch"
        moved = node.columns["layer_epochs"]["now"] & ((1 << MOVED_BITS) - 1)
        if net.now // MS - int(moved.max()) >= 15_500:
            assert (even != odd).all()


@pytest.mark.parametrize("victim", range(4))
def test_any_node_may_die_at_any_time_and_nothing_is_lost(net, rng, victim):
    talk = Talk(net, rng)
    for _ in range(30):
        talk.run(rng.uniform(0.5, 8), pause=0.25)
        everybody(net)[victim].restart()
    talk.run(40)
    talk.check()
    found = epochs(net)
    assert len(set(found)) == 1
    assert min(found[0]) >= 3
    assert not trouble(net)


def test_lost_packets_delay_an_epoch_and_never_part_the_hops(net, rng):
    talk = Talk(net, rng)
    net.watch = lambda flying: None if rng.random() < 0.08 else flying.packet
    talk.run(200)
    net.watch = lambda flying: flying.packet
    talk.check()
    assert min(epochs(net)[0]) >= 3
    assert not trouble(net)


def test_an_originator_that_hears_nothing_stays_in_its_epoch(net):
    """Two moves that nobody saw would look like none: the parity would be the same."""
    net.run(40, SECOND // 10)
    client = net.clients[0]
    mark = epochs(net)[0][FORTH]
    assert mark >= 1
    see = client.desk.ratchet._see_acknowledgements
    client.desk.ratchet._see_acknowledgements = lambda ends, now: None
    client.columns["layer_epochs"]["confirmed"] = 0
    net.run(100, SECOND // 10)
    assert epochs(net)[0][FORTH] == mark
    assert epochs(net)[0][BACK] >= 3, "the other direction goes on"
    client.desk.ratchet._see_acknowledgements = see
    net.run(50, SECOND // 10)
    assert epochs(net)[0][FORTH] == mark + 1
    assert not trouble(net)


def test_a_relay_that_stood_still_finds_the_epochs_again(net, rng):
    """Packets wait in its socket, and a move comes to it late: the next must not come too soon after."""
    talk = Talk(net, rng)
    talk.run(20)
    stopped = net.relays[1]
    turn = stopped.turn
    for _ in range(10):
        stopped.turn = lambda now, wall: None
        talk.net.run(1.5, STEP)
        stopped.turn = turn
        talk.run(rng.uniform(5, 20))
    talk.check()
    assert len(set(epochs(net))) == 1
    assert not trouble(net)


def test_the_cells_of_one_key_are_counted_from_its_epoch(net):
    client = net.clients[0]
    [row] = client.circuits()
    net.run(70, SECOND // 10)
    client.columns["circuits"][row]["cells_forth"] = 1 << 31
    client.columns["layer_epochs"]["since"][2 * row + FORTH] = (1 << 31) - 1000
    net.run(1)
    assert client.circuits() == [row], "those before are of other keys"


def test_a_death_between_commit_and_erasure_is_mended(net):
    net.run(70, SECOND // 10)
    client = net.clients[0]
    [row] = client.circuits()
    block = int(client.columns["circuits"][row]["keys"]) - 1
    at = block * ratchet.HOP_KEYS + 2 * LAYER_KEY_MAX
    epoch = epochs(net)[0][FORTH]
    client.columns["layer_keys"][at + 32 * (1 - epoch % 2)] = 9
    before = client.rows.repaired
    client.restart()
    assert client.rows.repaired == before + 1
    assert client.columns["layer_keys"][at + 32 * (1 - epoch % 2)] == 0
