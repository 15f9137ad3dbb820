"""Every command: what it prints, as text and as a document that fits its schema, and with which code it ends."""

import json
import re
import subprocess
import sys

import pytest
from pydantic import TypeAdapter

from control.cli import COMMANDS
from control.schemas import DOCUMENTS
from nyx.stats import COUNTERS, Latency
from tests.control.nodes import CONFIG, node
from tests.control.workers import answers, circuit, status, stream

SUBCOMMANDS = {
    "feed": ["follow", "readers", "admit"],
    "restart": ["worker"],
    "config": ["check", "show"],
    "keys": ["new", "show", "backup", "restore"],
    "testnet": ["up", "demo", "status", "down"],
}


def fits(text):
    value = json.loads(text)
    assert list(value)[:2] == ["schema", "version"]
    fields = {k: v for k, v in value.items() if k not in {"schema", "version"}}
    TypeAdapter(DOCUMENTS[value["schema"]]).validate_python(fields)
    return value


@pytest.mark.parametrize("command", ["status", "circuits", "streams", "peers", "stats"])
def test_documents_of_a_running_node_before_and_after_the_command(tmp_path, ctl, command):
    with node(tmp_path, [answers(0, 2)]) as running:
        code, out, err = ctl("--socket", running.socket, command, "--json")
        assert (code, err) == (0, "")
        assert fits(out)["schema"] == f"nyx.{command}"
        assert out.count("\n") == 1
        assert fits(ctl("--json", "--config", tmp_path / "nyx.toml", command)[1])["schema"] == f"nyx.{command}"


def test_status_for_people(tmp_path, ctl):
    told = answers(0) | {"status": status(0, warnings=["the clock is 40 s slow"])}
    with node(tmp_path, [told]) as running:
        code, out, _ = ctl("--socket", running.socket, "status")
    assert code == 0
    lines = out.splitlines()
    assert re.fullmatch(r"node     alice  client  127\.0\.0\.1:43300/udp  up \d+\.\d d", lines[0])
    assert lines[1] == "state    READY  1 link, 3 circuits (2 ready), 1 stream"
    assert lines[2].startswith("proxy    127.0.0.1:9750  SOCKS5 + HTTP CONNECT")
    assert lines[3:6] == ["memory   90 of 256 MiB", "health   1 warning", "         ! the clock is 40 s slow"]
    assert lines[7].split() == ["control", "99", "running", "restarted", "1", "x"]


def test_circuits_and_streams_for_people(tmp_path, ctl):
    told = answers() | {
        "circuits": ("circuits", [circuit(1), circuit(2, role="relay")]),
        "streams": ("streams", [stream(1), stream(2, state="closed", circuit=None, reason="the target refused the connection")]),
    }
    with node(tmp_path, [told, {}]) as running:
        _, out, err = ctl("--socket", running.socket, "circuits")
        assert out.splitlines()[1].endswith("000000000000 -> relay-1 -> relay-2")
        assert out.splitlines()[2].endswith("-  10   20  unknown here")
        assert err == "worker 1 did not answer\n"
        _, out, _ = ctl("--socket", running.socket, "streams")
        assert "secret.example" not in out
        assert out.splitlines()[2].endswith("the target refused the connection")
        assert "2.0 KiB" in out
        _, out, _ = ctl("--socket", running.socket, "streams", "--show-targets")
        assert "secret.example:80" in out


def test_a_stream_that_failed_has_lost_its_number_and_its_bytes(tmp_path, ctl):
    gone = stream(None, circuit=None, state="closed", bytes_in=None, bytes_out=None, reason="the target refused the connection")
    with node(tmp_path, [answers() | {"streams": ("streams", [stream(7), gone])}]) as running:
        _, out, _ = ctl("--socket", running.socket, "streams")
        assert out.splitlines()[2].split()[:9] == ["0", "-", "-", "client", "closed", "250", "ms", "-", "-"]
        assert fits(ctl("--socket", running.socket, "streams", "--json")[1])["streams"][1]["bytes_in"] is None


def test_a_circuit_is_closed_or_not_found(tmp_path, ctl):
    with node(
        tmp_path, [answers() | {"close_circuit": {"closed": True}}, answers(1) | {"close_circuit": "no circuit 9"}]
    ) as running:
        assert ctl("--socket", running.socket, "circuits", "--close", 0, 5)[:2] == (0, "circuit 5 of worker 0 is closed\n")
        code, out, _ = ctl("--socket", running.socket, "circuits", "--close", 1, 9, "--json")
        assert (code, fits(out)["code"], fits(out)["message"]) == (1, "not_found", "no circuit 9")


def test_a_stream_is_closed_or_not_found(tmp_path, ctl):
    with node(tmp_path, [answers() | {"close_stream": {"closed": True}}, answers(1) | {"close_stream": "no stream"}]) as running:
        close = ("--socket", running.socket, "streams", "--close")
        assert ctl(*close, 0, 5, 8)[:2] == (0, "stream 8 on circuit 5 of worker 0 is closed\n")
        assert running.workers[0].asked[-1].args == {"circuit": 5, "stream": 8}
        found = fits(ctl(*close, 0, 5, 8, "--json")[1])
        assert (found["schema"], found["circuit"], found["stream"]) == ("nyx.closed", 5, 8)
        code, out, _ = ctl(*close, 1, 5, 8, "--json")
        assert (code, fits(out)["code"]) == (1, "not_found")


def test_stats_leave_zeros_out_unless_asked(tmp_path, ctl):
    with node(tmp_path, [answers(), answers(1)]) as running:
        _, out, _ = ctl("--socket", running.socket, "stats", "--workers")
        assert out.splitlines()[0].split() == ["counter", "total", "worker", "0", "worker", "1"]
        assert out.splitlines()[2].split() == ["packets_out", "3", "1", "2"]


def test_stats_name_errors_units_and_percentiles(tmp_path, ctl):
    with node(tmp_path) as running:
        running.observe(0, {Latency.STREAM_OPEN: [20_000_000] * 98 + [2_000_000_000] * 2})
        running.count(0, "busy", 4_500_000_000)
        _, out, _ = ctl("--socket", running.socket, "stats")
        found = fits(ctl("--socket", running.socket, "stats", "--json")[1])
    lines = [line.split() for line in out.splitlines()]
    assert ["busy", "4.5", "s"] in lines
    assert "packet or cell dropped  total" in out
    assert ["bad_tag", str(COUNTERS.index("dropped_bad_tag"))] in lines
    assert "request or stream refused  total" in out
    assert ["policy", str(COUNTERS.index("refused_policy"))] in lines
    assert ["stream_open", "100", "18", "ms", "20", "ms", "1.8", "s", "60", "ms"] in lines
    latency = found["latencies"]["stream_open"]
    assert (latency["count"], sum(latency["counts"]), len(latency["bounds"])) == (100, 100, len(latency["counts"]) - 1)
    assert 1.5 < latency["p99"] <= 2.0
    assert found["units"]["busy"] == "ns"


def test_watched_stats_are_a_document_a_line_and_have_rates_for_people(tmp_path, ctl):
    with node(tmp_path) as running:
        watch = ("--socket", running.socket, "stats", "--watch", "--interval", "0.1", "--count", "2")
        code, out, _ = ctl(*watch, "--json")
        assert code == 0
        assert [fits(line)["schema"] for line in out.splitlines()] == ["nyx.stats"] * 2
        _, out, _ = ctl(*watch)
    first, second = (block.splitlines() for block in out.split("\n\ncounter"))
    assert "per second" not in first[0]
    assert second[0].split() == ["total", "per", "second"]
    assert second[1].split() == ["packets_out", "1", "0.0"]


def test_not_ready_is_a_code_only_where_it_is_asked(tmp_path, ctl):
    with node(tmp_path, [answers(stage="circuits")]) as running:
        assert ctl("--socket", running.socket, "status")[0] == 0
        assert ctl("--socket", running.socket, "status", "--check")[0] == 4
        code, out, err = ctl("--timeout", "0.3", "--socket", running.socket, "status", "--wait")
        assert code == 4
        assert "NOT READY: circuits" in out
        assert err == "bootstrapping   70%  circuits\n"
    with node(tmp_path) as running:
        assert ctl("--socket", running.socket, "status", "--wait", "--check")[0] == 0


def test_no_node_is_code_3_and_waiting_for_none_too(ctl, tmp_path):
    code, out, err = ctl("status")
    assert (code, out) == (3, "")
    assert "is nyxd running?" in err
    assert str(tmp_path / ".local/state/nyx/testnet/alice/run/control.sock") in err
    assert err.endswith("a whole network to try: nyxctl testnet demo\n")
    assert ctl("--timeout", "0.2", "status", "--wait")[0] == 3
    code, out, err = ctl("--socket", tmp_path / "none", "peers", "--json")
    assert (code, fits(out)["code"], err) == (3, "unreachable", "")
    assert ctl("--node", "bob", "status")[0] == 3


def test_a_mute_node_is_code_6(ctl, tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        code, out, _ = ctl("--timeout", "0.2", "--socket", tmp_path / "s", "status", "--json")
        assert (code, fits(out)["code"]) == (6, "timeout")


@pytest.mark.parametrize(
    "args", [["statu"], ["status", "--nothing"], ["--timeout", "x", "status"], ["config"], ["testnet", "up", "--relays", "x"]]
)
def test_wrong_use_is_code_2(ctl, args):
    code, out, err = ctl(*args)
    assert code == 2
    assert out == ""
    assert "Usage: nyxctl" in err
    if args == ["statu"]:
        assert "did you mean 'status'?" in err
    code, out, err = ctl(*args, "--json")
    assert (code, fits(out)["code"], err) == (2, "usage", "")


def test_stdout_may_be_closed(tmp_path):
    with node(tmp_path) as running:
        command = [sys.executable, "-c", "from control.cli import main; main()", "--socket", str(running.socket), "status"]
        for option in ([], ["--json"]):
            shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command, *option]
            result = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=30)
            assert (result.returncode, result.stderr) == (0, "")


def test_config_check_and_show(ctl, tmp_path):
    file = tmp_path / "nyx.toml"
    file.write_text(CONFIG)
    assert ctl("config", "check", file)[:2] == (0, f"{file}: ok\n")
    assert fits(ctl("config", "check", file, "--json")[1])["valid"] is True
    _, out, _ = ctl("config", "show", file, "--origin")
    assert f"{file}:3" in out
    values = {s["key"]: s["value"] for s in fits(ctl("--config", file, "config", "show", "--json")[1])["settings"]}
    assert (values["proxy.listen"], values["workers.count"], values["directory.signers"]) == (
        "127.0.0.1:9750",
        "auto",
        ["ab" * 32],
    )
    file.write_text(CONFIG + "[cover]\n[exit]\npolicy = 3\n")
    code, out, err = ctl("config", "check", file)
    assert (code, out, err.count("\n")) == (78, "", 2)
    assert fits(ctl("config", "check", file, "--json")[1])["problems"] == err.splitlines()
    assert ctl("config", "show", file)[0] == 78


def test_keys_are_made_once_and_never_printed(ctl, tmp_path):
    file = tmp_path / "keys" / "node"
    code, out, _ = ctl("keys", "new", file, "--json")
    assert code == 0
    name = fits(out)["node"]
    assert ctl("keys", "show", file)[1] == f"{file}  node {name}\n"
    before = file.read_bytes()
    assert ctl("keys", "new", file)[0] == 1
    assert file.read_bytes() == before
    file.chmod(0o644)
    code, out, err = ctl("keys", "show", file)
    assert (code, out) == (78, "")
    assert "chmod 600" in err


def test_paths_version_and_schemas(ctl, tmp_path):
    assert fits(ctl("paths", "--json")[1])["testnet"] == str(tmp_path / ".local/state/nyx/testnet")
    assert "socket" in ctl("paths")[1]
    assert fits(ctl("version", "--json")[1])["protocol"] == "Nyx0.1"
    assert ctl("version")[1].startswith("nyxctl ")
    assert set(fits(ctl("schema", "--json")[1])["documents"]) == set(DOCUMENTS)
    assert "nyx.circuits" in ctl("schema")[1]
    assert json.loads(ctl("schema", "nyx.status")[1])["properties"]["schema"] == {"const": "nyx.status"}
    assert ctl("schema", "status")[1] == ctl("schema", "nyx.status")[1]
    assert ctl("schema", "nyx.nothing")[0] == 2


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help_and_json(ctl, command):
    for args in [[command, sub] for sub in SUBCOMMANDS.get(command, [])] or [[command]]:
        code, out, _ = ctl(*args, "--help")
        assert code == 0
        assert "--json" in out
        assert out.startswith("Usage: nyxctl " + " ".join(args))


def test_help_names_every_command_and_imports_none(ctl):
    _, out, _ = ctl("--help")
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert "78 bad configuration" in " ".join(out.split())
    heavy = ["numpy", "numba", "asyncio", "pydantic", "cryptography", "nyx.config", "json", "socket"]
    code = "import sys; from control.cli import run; run(['--help'])\n"
    code += f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert result.stderr == "[]\n"


def test_no_colour_into_a_pipe_nor_with_no_color(monkeypatch):
    from control.cli import output

    assert not output.coloured()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.coloured()


def test_figures_for_people():
    from control.cli.output import duration, plural, size, table

    assert [duration(s) for s in (0.0041, 0.25, 3.21, 45, 300, 9000, 300000)] == [
        "4.1 ms",
        "250 ms",
        "3.2 s",
        "45 s",
        "5 min",
        "2.5 h",
        "3.5 d",
    ]
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 1 << 41)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]
    assert [plural(n, "link") for n in (0, 1, 2)] == ["0 links", "1 link", "2 links"]
    assert table(["a", "n"], [["x", "10"], ["yyy", "5"]]) == ["a     n", "x    10", "yyy   5"]
    assert table(["a"], []) == ["a"]
