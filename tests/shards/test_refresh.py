"""Circuit refreshes of whole nodes without sockets: new keys at every hop, at once and every ten minutes, whoever dies."""

import numpy as np
import pytest

from nyx.onion import ratchet
from nyx.stats import Counter
from nyx.wire.codes import DestroyReason, Drop
from nyx.wire.packet import KIND_REFRESH
from shards import refresh as module
from shards.tables import ROLE_CLIENT, ROLE_LAST
from tests.reference.ratchet import Chain
from tests.shards.small_network import SECOND, Network
from tests.shards.test_ratchet import STEP, Talk, epochs, everybody, trouble


@pytest.fixture
def net(rng, tmp_path):
    """A client with one circuit over three relays."""
    return Network(rng, tmp_path, ahead=1)


def alone(net):
    """One circuit, and time for its refresh."""
    net.run(1.25)
    net.clients[0].path.circuits_ahead = 0
    return net


def hops(net):
    """The relays in the order of the path."""
    clients = net.clients[0].desk.clients
    assert clients is not None
    ids = [node.id for node in clients.all[0].path]
    return sorted(net.relays, key=lambda relay: ids.index(relay.keys.public.node_id))


def word(net, name):
    """A word of the circuit's row at each node."""
    found = []
    for node in everybody(net):
        [row] = node.circuits()
        found.append(int(node.columns["circuits"][row][name]))
    return found


def circuit_keys(node):
    [row] = node.circuits()
    return node.rows.circuit_keys(row)


def fresh_parts(node):
    """What a refresh left in the column beside what is in force."""
    hops = node.columns["layer_keys"].reshape(-1, ratchet.HOP_KEYS)
    places = [ratchet._FRESH, ratchet.CHAIN_KEYS + ratchet._FRESH, ratchet._FRESH_CK]
    return [bool(hops[:, at : at + 32].any()) for at in places]


def done(net):
    return int(net.clients[0].statistics[Counter.REFRESHES_DONE])


def test_a_circuit_is_refreshed_at_once_and_the_keys_take_over_two_epochs_later(net, rng):
    alone(net)
    assert done(net) == 1
    assert word(net, "fresh_at") == [2] * 4
    before = circuit_keys(net.clients[0])
    assert before == [key for relay in hops(net) for key in circuit_keys(relay)]
    talk = Talk(net, rng)
    talk.run(100)
    talk.check()
    assert word(net, "fresh_at") == [0] * 4
    assert not trouble(net)
    after = circuit_keys(net.clients[0])
    assert after == [key for relay in hops(net) for key in circuit_keys(relay)]
    assert not set(before) & set(after)
    for node in everybody(net):
        assert fresh_parts(node) == [False] * 3, "nothing waits beside what is in force"
        held = node.columns["layer_keys"].tobytes()
        assert not any(key in held for key in before), "the old circuit keys are gone"


def test_it_is_repeated_every_ten_minutes(net, rng):
    alone(net)
    talk = Talk(net, rng)
    talk.run(690, pause=2)
    talk.check()
    assert done(net) == 2
    assert word(net, "refresh") == [2] * 4
    assert not trouble(net)
    assert len(set(epochs(net))) == 1


def test_the_epochs_after_it_do_not_follow_from_what_was_there_before(net):
    """Who took every key of the circuit before the refresh, but not the ephemeral ones, is shut out from the named epoch on."""
    alone(net)
    client = net.clients[0]
    [row] = client.circuits()
    block = (int(client.columns["circuits"][row]["keys"]) - 1) * ratchet.HOP_KEYS
    seed = client.columns["layer_keys"][block + 352 : block + 384].tobytes()
    net.run(80, SECOND // 10)
    now = epochs(net)[0][0]
    assert now >= 2
    stolen = Chain(seed, 1).seed(now)
    at = block + 352 + 32 * (now % 2)
    assert client.columns["layer_keys"][at : at + 32].tobytes() != stolen


@pytest.mark.parametrize("victim", range(4))
def test_a_worker_that_dies_in_a_refresh_costs_a_repetition(rng, tmp_path, victim):
    """At every other of the first thirty turns after the circuit is ready, which are those of the refresh and more."""
    for turn in range(0, 30, 2):
        folder = tmp_path / str(turn)
        folder.mkdir()
        net = Network(rng, folder, ahead=1)
        clients = net.clients[0].desk.clients
        assert clients is not None
        while not clients.ready:
            net.tick()
        net.clients[0].path.circuits_ahead = 0
        for _ in range(turn):
            net.tick()
        everybody(net)[victim].restart()
        net.run(110, SECOND // 10)
        assert len(net.clients[0].circuits(ROLE_CLIENT)) == 1, f"turn {turn}: the circuit lives"
        assert int(net.clients[0].columns["circuits"]["refreshed"].max()) > 0
        assert word(net, "fresh_at") == [0] * 4
        assert min(epochs(net)[0]) >= 2
        assert not trouble(net)


def swallow(net, hop, most):
    """The relay of this number takes refresh cells and passes none of the first `most` on."""
    links, left = net.relays[hop].links, [most]
    send = links.send_cell

    def lose(link, session, kind, slot, circuit_id, cell):
        if kind == KIND_REFRESH and left[0] > 0:
            left[0] -= 1
            return True
        return send(link, session, kind, slot, circuit_id, cell)

    links.send_cell = lose


@pytest.mark.parametrize("most", [1, 7, 20])
def test_a_refresh_that_is_lost_is_asked_again(net, most):
    for hop in range(3):
        swallow(net, hop, most)
    alone(net)
    assert done(net) == 0
    net.run(60, SECOND // 10)
    assert done(net) == 1
    assert len(set(word(net, "refresh"))) == 1
    net.run(60, SECOND // 10)
    assert word(net, "fresh_at") == [0] * 4
    assert not trouble(net)


def test_a_circuit_whose_refresh_is_never_answered_is_closed_in_time(net):
    for hop in range(3):
        swallow(net, hop, 10**9)
    alone(net)
    ended = []
    end = net.clients[0].desk.end_row

    def note(row, reason):
        ended.append(reason)
        end(row, reason)

    net.clients[0].desk.refreshes._end_row = note
    net.run(60, SECOND // 10)
    assert ended == [DestroyReason.DEADLINE]
    assert not trouble(net), "no cell was spoiled by keys that only some hops have"
    assert all(not node.circuits() for node in everybody(net))


def test_a_hop_that_changes_a_refresh_cell_gains_nothing(net):
    send = net.relays[1].links.send_cell
    left = [2]

    def change(link, session, kind, slot, circuit_id, cell):
        if kind == KIND_REFRESH and slot == 3 and left[0]:
            left[0] -= 1
            cell = bytes((cell[0] ^ 1, *cell[1:]))
        return send(link, session, kind, slot, circuit_id, cell)

    net.relays[1].links.send_cell = change
    alone(net)
    net.run(40, SECOND // 10)
    assert done(net) == 1
    assert left == [0]
    assert not trouble(net)


def test_lost_cells_are_counted_and_too_many_end_the_circuit(net, rng):
    alone(net)
    client = net.clients[0]
    [row] = client.circuits()
    middle = hops(net)[1]
    [place] = middle.circuits()
    talk = Talk(net, rng)
    talk.run(70)
    middle.columns["circuits"][place]["cells_forth"] -= 9  # as if they had been lost before it
    client.columns["circuits"][row]["refreshed"] = 1
    net.run(2, STEP)
    assert done(net) == 2
    assert client.statistics[Counter.CELLS_MISSING] == 9
    talk.run(70)
    client.columns["circuits"][row]["refreshed"] = 1
    net.run(2, STEP)
    assert client.statistics[Counter.CELLS_MISSING] == 9, "each is counted once"
    talk.run(70)
    middle.columns["circuits"][place]["cells_forth"] += 10**6
    client.columns["circuits"][row]["refreshed"] = 1
    net.run(2, STEP)
    assert not client.circuits(), "somebody brought cells that were never sent"


def test_requests_of_a_circuit_that_come_too_fast_are_dropped(net):
    alone(net)
    client, first = net.clients[0], hops(net)[0]
    [row] = client.circuits()
    made = int(first.statistics[Counter.REFRESHES_PASSED])
    for _ in range(10):
        client.desk.refreshes._ask(row, net.now)
        net.run(0.1)
    assert int(first.statistics[Counter.REFRESHES_PASSED]) <= made + 1
    assert first.drops(Drop.OVERFLOW) >= 8


def test_refresh_cells_for_no_circuit_and_out_of_turn(net):
    alone(net)
    client, first = net.clients[0], hops(net)[0]
    [row] = client.circuits()
    leg = client.rows.legs(row)[1]
    link = client.links.link_of(leg.session)
    client.links.send_cell(link, leg.session, KIND_REFRESH, 0, leg.circuit_id ^ 77, bytes(1224))
    net.run(0.3)
    assert first.drops(Drop.UNKNOWN_CIRCUIT) == 1
    last = next(relay for relay in net.relays if relay.circuits(ROLE_LAST))
    for slot in range(7):
        client.links.send_cell(link, leg.session, KIND_REFRESH, slot, leg.circuit_id, bytes(1224))
    net.run(4)
    assert first.drops(Drop.BAD_BUILD) + first.drops(Drop.OVERFLOW) == 1
    assert last.drops(Drop.BAD_BUILD) == 0
    assert not first.desk.refreshes._collecting
    assert not first.desk.refreshes._per_link


def test_cells_that_never_become_seven_are_forgotten(net):
    alone(net)
    client, first = net.clients[0], hops(net)[0]
    [row] = client.circuits()
    leg = client.rows.legs(row)[1]
    client.links.send_cell(client.links.link_of(leg.session), leg.session, KIND_REFRESH, 0, leg.circuit_id, bytes(1224))
    net.run(0.3)
    assert len(first.desk.refreshes._collecting) == 1
    net.run(module.COLLECT_PARTS + 1)
    assert not first.desk.refreshes._collecting


def test_nothing_of_a_refresh_outlives_its_circuit(net):
    alone(net)
    client = net.clients[0]
    client.desk.end_row(client.circuits()[0], DestroyReason.NONE)
    net.run(1)
    for node in everybody(net):
        assert not node.columns["layer_keys"].any()
        assert not node.columns["circuits"].view(np.uint8).any()
