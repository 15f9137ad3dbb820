"""The configuration: values, precedence, and every problem at once with its place."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx import config
from nyx.errors import ConfigError

SIGNER = "ab" * 32
GOOD = f"""
[directory]
file = "network"
signers = ["{SIGNER}"]
"""


def problems(text, environ=None, flags=None):
    with pytest.raises(ConfigError) as caught:
        config.load(text, "t.toml", environ, flags)
    return caught.value.problems


def test_defaults_and_origins():
    found = config.load(GOOD, "t.toml", {"HOME": "/home/a"})
    assert found.node == config.NodeConfig(
        "nyx", "client", "0.0.0.0", 43300, 4096, Path("/home/a/.local/state/nyx"), Path("/home/a/.local/state/nyx/run")
    )
    assert found.proxy.listen == ("127.0.0.1", 9750)
    assert found.path == config.PathConfig(3, 2, 20, allow_loopback=False)
    assert found.workers == config.WorkersConfig(0, pin=True)
    assert found.directory == config.DirectoryConfig(Path("network"), (bytes.fromhex(SIGNER),), 1)
    assert found.exit.policy == ("accept public:80,443", "reject *:*")
    assert found.origins["directory.file"] == "t.toml:3"
    assert found.origins["path.hops"] == "built in"
    assert found.control_socket == Path("/home/a/.local/state/nyx/run/control.sock")


def test_a_relay_has_no_proxy_unless_it_says_so():
    assert config.load("[node]\nrole = 'relay'\n" + GOOD).proxy.listen is None
    assert config.load("[proxy]\nlisten = '[::1]:99'\n[node]\nrole = 'relay'\n" + GOOD).proxy.listen == ("::1", 99)


def test_flags_win_over_the_environment_and_that_over_the_file():
    text = "[path]\nhops = 4\n" + GOOD
    assert config.load(text).path.hops == 4
    assert config.load(text, environ={"NYX_PATH_HOPS": "5"}).path.hops == 5
    found = config.load(text, environ={"NYX_PATH_HOPS": "5", "NYX_KERNELS": "plain"}, flags={"path.hops": "6"})
    assert found.path.hops == 6
    assert found.origins["path.hops"] == "flag"


def test_text_becomes_values_of_every_form():
    environ = {
        "NYX_WORKERS_PIN": "false",
        "NYX_WORKERS_COUNT": "auto",
        "NYX_NODE_ALIAS": "1234",
        "NYX_DIRECTORY_SIGNERS": f"{SIGNER}, {'cd' * 32}",
        "NYX_EXIT_POLICY": "accept public:80,443;reject *:*",
        "XDG_RUNTIME_DIR": "/run/user/7",
    }
    found = config.load(GOOD, environ=environ)
    assert not found.workers.pin
    assert found.workers.count == 0
    assert found.node.alias == "1234"
    assert len(found.directory.signers) == 2
    assert found.exit.policy == ("accept public:80,443", "reject *:*")
    assert found.node.run_dir == Path("/run/user/7/nyx")


def test_relative_paths_count_from_the_file(tmp_path):
    file = tmp_path / "nyx.toml"
    file.write_text(GOOD)
    assert config.load(file).directory.file == tmp_path / "network"


def test_all_problems_at_once_each_with_its_place():
    text = """[node]
alias = "x y"
prt = 4
hops = 3
[path]
hop = 3
hops = 9
[covr]
rate = 1
[directory]
signers = [
  "zz",
]
"""
    assert problems(text, {"NYX_WORKERS_COUNT": "9"}) == [
        "NYX_WORKERS_COUNT  workers.count: 9 is above the range 1 to 4",
        "t.toml  directory.file: missing; it names the signed snapshot of the network",
        't.toml:2  node.alias: "x y": 1 to 32 letters, digits, - and _, a letter or digit first',
        't.toml:3  node.prt: unknown key, did you mean "port"?',
        't.toml:4  node.hops: unknown key, did you mean "path.hops"?',
        't.toml:6  path.hop: unknown key, did you mean "hops"?',
        "t.toml:7  path.hops: 9 is above the range 1 to 7",
        "t.toml:8  covr: unknown section",
        't.toml:11  directory.signers: "zz" is not an Ed25519 public key of 64 hexadecimal digits',
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node]\nport = 43400", "t.toml:2  node.port: 43400 is above the range 43300 to 43399"),
        ("[node]\nport = '43300'", "is not a whole number"),
        ("[node]\nport = true", "true is not a whole number"),
        ("[node]\naddress = 'localhost'", "is not a numeric"),
        ("[node]\nrole = 'exti'", 'is none of client, relay, exit, did you mean "exit"?'),
        ("[node]\nrole = ['exit']", "is none of"),
        ("[node]\naddress = '127.0.0.1'", "test networks say path.allow_loopback = true"),
        ("[node]\nstate_dir = ''", "an empty path"),
        (f"[node]\nrun_dir = '/{'x' * 100}'", "at most 107 bytes"),
        ("[workers]\ncount = 0", "below the range 1 to 4"),
        ("[workers]\npin = 1", "neither true nor false"),
        ("[proxy]\nlisten = '0.0.0.0:9750'", "anybody who reaches it could use this proxy"),
        ("[proxy]\nlisten = 'localhost:9750'", 'neither "off" nor a numeric address'),
        ("[proxy]\nlisten = '127.0.0.1:99999'", "not within 1 to 65535"),
        ("[path]\nhops = 2", "only in test networks"),
        ("[exit]\npolicy = ['allow all']", "is no rule"),
        ("[exit]\npolicy = 'accept *:*'", "is not a list"),
        ("node = 3", "t.toml:1  node: unknown section"),
        ("[[node]]\nport = 1", "unknown section"),
    ],
)
def test_one_wrong_value(text, words):
    found = problems(text + "\n" + GOOD)
    assert len(found) == 1
    assert words in found[0]


def test_threshold_above_the_signers():
    assert problems(GOOD + "threshold = 2\n") == ["t.toml:5  directory.threshold: 2 is above the number of signers, 1"]


def test_a_signer_named_twice():
    assert "each once" in problems(GOOD.replace(f'["{SIGNER}"]', f'["{SIGNER}", "{SIGNER.upper()}"]'))[0]


def test_not_toml_is_one_problem_with_its_line():
    assert problems("[node]\nalias = \n") == ["t.toml:2  not TOML: Invalid value"]


def test_an_unreadable_file(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be read"):
            config.load(path)
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "latin")


def test_an_unknown_flag_and_variable_name_themselves():
    assert problems(GOOD, {"NYX_PATH_HOPSS": "3"}, {"hops": "3"}) == [
        'NYX_PATH_HOPSS  path.hopss: unknown key, did you mean "hops"?',
        'flag  hops: unknown key, did you mean "path.hops"?',
    ]


@given(st.dictionaries(st.sampled_from([k.name for k in config.KEYS]), st.text(max_size=20)))
def test_any_text_for_any_key_gives_a_config_or_problems_that_name_keys(flags):
    try:
        config.load(GOOD, flags=flags)
        found = []
    except ConfigError as error:
        found = error.problems
    assert all(re.search(r"  [a-z]+\.[a-z_]+: ", p) for p in found)


def test_a_path_under_the_home_folder():
    text = GOOD.replace('"network"', '"~/network"')
    assert config.load(text, environ={"HOME": "/home/a"}).directory.file == Path("/home/a/network")


def test_drop_ins_beside_the_file_win_over_it_in_the_order_of_their_names(tmp_path):
    main, folder = tmp_path / "nyx.toml", tmp_path / "conf.d"
    folder.mkdir()
    main.write_text("[path]\nhops = 3\ncircuits_ahead = 3\n" + GOOD)
    (folder / "10-first.toml").write_text("[path]\nhops = 4\n[node]\nstate_dir = 'state'\n")
    (folder / "20-second.toml").write_text("[path]\n\nhops = 5\n")
    (folder / "30-off.toml.bak").write_text("[path]\nhops = 6\n")
    found = config.load(main, environ={"HOME": "/home/a"})
    assert (found.path.hops, found.path.circuits_ahead) == (5, 3)
    assert found.origins["path.hops"] == f"{folder}/20-second.toml:3"
    assert found.node.state_dir == tmp_path / "state"
    assert config.load(main, environ={"NYX_PATH_HOPS": "6"}).path.hops == 6


def test_problems_of_all_files_come_at_once_in_the_order_of_files_and_lines(tmp_path):
    main, folder = tmp_path / "nyx.toml", tmp_path / "conf.d"
    folder.mkdir()
    main.write_text("[path]\nhop = 3\ncircuits_ahead = 99\n" + GOOD)
    (folder / "10.toml").write_text("[limits]\n\nstreams = 1\n")
    with pytest.raises(ConfigError) as caught:
        config.load(main)
    assert caught.value.problems == [
        f'{main}:2  path.hop: unknown key, did you mean "hops"?',
        f"{main}:3  path.circuits_ahead: 99 is above the range 0 to 64",
        f"{folder}/10.toml:3  limits.streams: 1 is below the range 16 to 65536",
    ]
    (folder / "10.toml").write_text("[limits\n")
    with pytest.raises(ConfigError) as caught:
        config.load(main)
    assert len(caught.value.problems) == 1
    assert f"{folder}/10.toml:1  not TOML" in caught.value.problems[0]


def test_brackets_without_end_are_a_problem_and_no_crash(tmp_path):
    main = tmp_path / "nyx.toml"
    main.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="not TOML"):
        config.load(main)


def test_a_text_stands_for_a_file(tmp_path):
    main = tmp_path / "nyx.toml"
    main.write_text(GOOD)
    assert config.load(main, instead={main: GOOD + "[path]\nhops = 6\n"}).path.hops == 6
