"""nyxctl config where no node runs: values read and written, comments kept, history and the way back, codes."""

import json
import os

import pytest
from pydantic import TypeAdapter

from control.cli import run
from control.schemas import DOCUMENTS
from nyx import config
from nyx.history import Entry, History
from tests.control.nodes import CONFIG


@pytest.fixture
def file(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("NYX_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = tmp_path / "nyx.toml"
    found.write_text("# mine\n" + CONFIG)
    (tmp_path / "state").mkdir(0o700)
    return found


@pytest.fixture
def ctl(capsys, file):
    def call(*args):
        code = run(["--config", str(file), *map(str, args)])
        return code, *capsys.readouterr()

    return call


def fits(text):
    value = json.loads(text)
    fields = {k: v for k, v in value.items() if k not in {"schema", "version"}}
    TypeAdapter(DOCUMENTS[value["schema"]]).validate_python(fields)
    return value


def test_one_value_is_printed_as_a_file_says_it(ctl):
    assert ctl("config", "get", "node.alias") == (0, "alice\n", "")
    assert ctl("config", "get", "exit.policy")[1] == '["accept public:80,443", "reject *:*"]\n'
    found = fits(ctl("config", "get", "path.hops", "--json")[1])
    assert (found["value"], found["origin"], found["allowed"]) == (3, "built in", "1 to 7")
    code, _, err = ctl("config", "get", "path.hop")
    assert (code, 'did you mean "hops"' in err) == (78, True)


def test_values_are_set_and_unset_and_comments_stay(ctl, file):
    code, out, err = ctl("config", "set", "path.hops", "4", "exit.policy", "accept *:443; reject *:*", "workers.pin", "false")
    assert (code, err) == (0, "no node was reloaded\n")
    assert "3 keys changed" in out
    assert "path.hops" in out
    found = config.load(file)
    assert (found.path.hops, found.exit.policy, found.workers.pin) == (4, ("accept *:443", "reject *:*"), False)
    assert file.read_text().startswith("# mine\n")
    document = fits(ctl("config", "unset", "exit.policy", "workers.pin", "--json")[1])
    assert {c["key"] for c in document["changes"]} == {"exit.policy", "workers.pin"}
    assert document["reload"] is None
    assert config.load(file).exit.policy == ("accept public:80,443", "reject *:*")
    assert "the files say so already" in ctl("config", "set", "path.hops", "4")[1]


def test_nothing_is_written_where_the_whole_would_be_wrong(ctl, file):
    before = file.read_text()
    code, _, err = ctl("config", "set", "path.hops", "9", "limits.streams", "x")
    assert code == 78
    assert "path.hops: 9 is above the range 1 to 7" in err
    assert 'limits.streams: "x" is not a whole number' in err
    assert ctl("config", "set", "path.hops")[0] == 2
    assert ctl("config", "unset", "directory.signers")[0] == 78
    assert file.read_text() == before


def test_a_broken_file_can_be_mended(ctl, file):
    file.write_text(file.read_text().replace("[path]\n", "[path]\nhops = 9\n"))
    assert ctl("config", "check")[0] == 78
    code, out, _ = ctl("config", "set", "path.hops", "3")
    assert (code, "1 key changed" in out) == (0, True)
    assert ctl("config", "check")[0] == 0


def test_what_the_environment_decides_is_not_written_over(ctl, file, monkeypatch):
    monkeypatch.setenv("NYX_PATH_HOPS", "5")
    before = file.read_text()
    code, _, err = ctl("config", "set", "path.hops", "4")
    assert code == 2
    assert "path.hops is set by NYX_PATH_HOPS in the environment, which wins over every file" in err
    assert file.read_text() == before


def test_history_and_the_way_back_without_a_node(ctl, file, tmp_path):
    assert ctl("config", "history")[1:] == ("", "no version has been in force yet\n")
    assert ctl("config", "rollback")[0] == 1
    history = History(tmp_path / "state")
    for number, hops in ((1, 3), (2, 5)):
        found = config.load(file, environ={"NYX_PATH_HOPS": str(hops)})
        origins = {**found.origins, "path.hops": f"{file}:1"}
        history.add(Entry(number, 1000, "start", [], config.settings(found), origins, {"sequence": 1}))
    document = fits(ctl("config", "history", "--json")[1])
    assert ([v["config"] for v in document["versions"]], document["running"]) == ([2, 1], None)
    assert ctl("config", "rollback", "7")[0] == 1
    assert ctl("config", "rollback", "2")[0] == 0
    assert config.load(file).path.hops == 5
    assert ctl("config", "rollback")[0] == 0
    assert config.load(file).path.hops == 3
    code, _, err = ctl("config", "rollback", "1")
    assert (code, "there is nothing to go back to" in err) == (1, True)


def test_what_only_a_node_knows_is_code_3_without_one(ctl):
    for command in (["diff"], ["show", "--running"], ["get", "path.hops", "--running"]):
        assert ctl("config", *command)[0] == 3
    assert ctl("reload")[0] == 3
