"""Writing configuration files: comments kept, the deciding file chosen, everything checked first, taken back whole."""

import stat

import pytest

from control.config_file import Edit
from nyx.config import load
from nyx.errors import ConfigError

TEXT = """# my node
[path]
hops = 3            # as many as it takes
circuits_ahead = 2

# who signs
[directory]
file = "network"
signers = ["abababababababababababababababababababababababababababababababab"]  # the one
"""


@pytest.fixture
def main(tmp_path):
    file = tmp_path / "nyx.toml"
    file.write_text(TEXT)
    file.chmod(0o640)
    return file


def test_a_key_is_changed_and_every_comment_stays(main):
    edit = Edit(main, {})
    edit.set("path.hops", 5)
    assert [(c.key, c.old, c.new) for c in edit.check()] == [("path.hops", 3, 5)]
    assert main.read_text() == TEXT
    assert edit.write() == [str(main)]
    assert main.read_text() == TEXT.replace("hops = 3 ", "hops = 5 ")
    assert stat.S_IMODE(main.stat().st_mode) == 0o640
    edit.take_back()
    assert main.read_text() == TEXT


def test_a_key_that_is_not_there_yet_gets_its_place(main):
    edit = Edit(main, {})
    edit.set("exit.policy", ["accept *:443", "reject *:*"])
    edit.set("directory.threshold", 1)
    edit.check()
    edit.write()
    found = load(main)
    assert found.exit.policy == ("accept *:443", "reject *:*")
    assert found.origins["directory.threshold"].startswith(str(main))
    for line in TEXT.splitlines():
        assert line in main.read_text().splitlines()


def test_a_removed_key_has_its_default_again(main):
    edit = Edit(main, {})
    edit.remove("path.circuits_ahead")
    edit.check()
    edit.write()
    assert "circuits_ahead" not in main.read_text()
    assert load(main).origins["path.circuits_ahead"] == "built in"


def test_the_file_that_decides_is_the_one_that_changes(main):
    (main.parent / "conf.d").mkdir()
    drop_in = main.parent / "conf.d" / "50-local.toml"
    drop_in.write_text("[path]\nhops = 4 # here\n")
    edit = Edit(main, {})
    edit.set("path.hops", 6)
    edit.check()
    assert edit.write() == [str(drop_in)]
    assert drop_in.read_text() == "[path]\nhops = 6 # here\n"
    assert main.read_text() == TEXT


def test_nothing_is_written_when_the_whole_would_be_wrong(main):
    edit = Edit(main, {})
    edit.set("path.hops", 9)
    edit.set("limits.streams", 1)
    with pytest.raises(ConfigError) as caught:
        edit.check()
    assert len(caught.value.problems) == 2
    assert main.read_text() == TEXT
    assert [file.name for file in main.parent.iterdir()] == ["nyx.toml"]


def test_an_unknown_key_is_told_with_what_it_may_mean(main):
    with pytest.raises(ConfigError, match='did you mean "hops"'):
        Edit(main, {}).set("path.hop", 3)


def test_a_link_stays_a_link(main):
    link = main.parent / "link.toml"
    link.symlink_to(main)
    edit = Edit(link, {})
    edit.set("path.hops", 4)
    edit.check()
    edit.write()
    assert link.is_symlink()
    assert "hops = 4" in main.read_text()
