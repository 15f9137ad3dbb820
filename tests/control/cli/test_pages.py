"""Manual pages and completion, as a shell and man take them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from control.cli import COMMANDS
from control.manual import escape
from nyx.config import KEYS

ROOT = Path(__file__).resolve().parents[3]

BASH = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


def test_every_command_has_a_page_that_man_takes_without_a_warning(ctl, tmp_path):
    code, out, _ = ctl("man", "--dir", tmp_path, "--json")
    files = [Path(name) for name in json.loads(out)["files"]]
    assert code == 0
    names = {file.name for file in files}
    assert {"nyxctl.1", "nyxctl-config-set.1", *(f"nyxctl-{name}.1" for name in COMMANDS)} <= names
    assert {file.parent.name + file.suffix for file in files} == {"man1.1", "man5.5"}
    if shutil.which("groff"):
        for file in (*files, ROOT / "systemd/man/nyxd.8"):
            shown = subprocess.run(
                ["groff", "-man", "-ww", "-Tutf8", "-z", file], capture_output=True, text=True, timeout=30, check=False
            )
            assert (shown.returncode, shown.stderr) == (0, ""), file
    page = (tmp_path / "man1" / "nyxctl-connect.1").read_text()
    assert "\\fB\\-L [ADDR:]PORT:HOST:PORT\\fR\nForward a local port." in page
    assert "\\fBnyxctl\\-connect\\fR(1)" in (tmp_path / "man1" / "nyxctl.1").read_text()


def test_the_page_of_the_file_has_every_key(ctl, tmp_path):
    assert ctl("man", "--dir", tmp_path)[0] == 0
    page = (tmp_path / "man5" / "nyx.toml.5").read_text()
    for key in KEYS:
        section, _, name = key.name.partition(".")
        part = page.partition(f'.SH "[{section.upper()}]"')[2].partition(".SH")[0]
        assert f"\\fB{escape(name)}\\fR\n" in part, key.name


def test_the_page_of_the_daemon_has_every_option():
    page = (ROOT / "systemd/man/nyxd.8").read_text().replace("\\-", "-")
    told = subprocess.run(
        [sys.executable, "-m", "shards.nyxd", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    options = re.findall(r"--[a-z-]+", told)
    assert len(options) > 5
    assert [option for option in options if option not in page] == []


def test_text_is_literal_to_troff():
    assert escape(".so it's a\\b -x") == "\\&.so it\\(aqs a\\eb \\-x"
    assert escape("'quoted'") == "\\(aqquoted\\(aq"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_call_the_program_for_completions(ctl, shell):
    code, out, _ = ctl("completion", shell)
    assert code == 0
    assert f"_NYXCTL_COMPLETE={shell}_complete" in out
    assert json.loads(ctl("completion", shell, "--json")[1])["script"].strip() == out.strip()
    if shutil.which(shell) and shell != "fish":
        assert subprocess.run([shell, "-n"], input=out, text=True, timeout=30, check=False).returncode == 0


def test_an_unknown_shell_is_code_2(ctl):
    assert ctl("completion", "tcsh")[0] == 2


@BASH
@pytest.mark.parametrize(
    ("words", "wanted"), [("nyxctl doc", "doctor"), ("nyxctl config his", "history"), ("nyxctl top --on", "--once")]
)
def test_bash_completes_commands_and_options(ctl, tmp_path, words, wanted):
    program = tmp_path / "nyxctl"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'nyxctl'\nfrom control.cli import main\nmain()\n")
    program.chmod(0o755)
    script = ctl("completion", "bash")[1]
    line = words.split()
    script += f'\nCOMP_WORDS=({words})\nCOMP_CWORD={len(line) - 1}\n_nyxctl_completion nyxctl\necho "${{COMPREPLY[@]}}"\n'
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=30, check=True, env=environ)
    assert done.stdout.split() == [wanted], done.stderr
