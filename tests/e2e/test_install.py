"""`make install` and `make uninstall`: what is put where, that it runs there, that systemd accepts it, that nothing stays."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.shards.test_nyxd import ROOT, Home

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

EXPOSURE = "15"  # tenths: systemd-analyze security, below 2 is its best class


def make(target, folder, *variables):
    given = (f"DESTDIR={folder}", f"PYTHON={sys.executable}", f"PACKAGES={Path(np.__file__).parent.parent}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTHON", "NYX_"))}
    found = subprocess.run(
        ["make", "--no-print-directory", target, *given, *variables],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def run(program, *arguments):
    return subprocess.run([program, *arguments], cwd="/", capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    make("install", folder)
    return folder


def test_files_stand_where_systemd_and_people_look_for_them(staged):
    found = {name for name in files(staged) if not name.startswith("usr/local/lib/nyx/")}
    pages = {name for name in found if re.match(r"usr/local/share/man/man1/nyxctl(-[a-z-]+)?\.1$", name)}
    assert {f"usr/local/share/man/man1/nyxctl{name}.1" for name in ("", "-status", "-config-set")} <= pages
    assert found - pages - {name for name in found if name.startswith("usr/local/share/doc/nyx/")} == {
        "etc/nyx/nyx.toml",
        "usr/local/bin/nyxctl",
        "usr/local/bin/nyxd",
        "usr/local/lib/sysctl.d/50-nyx.conf",
        "usr/local/lib/systemd/system/nyx.service",
        "usr/local/lib/systemd/user/nyx.service",
        "usr/local/lib/sysusers.d/nyx.conf",
        "usr/local/lib/tmpfiles.d/nyx.conf",
        "usr/local/share/bash-completion/completions/nyxctl",
        "usr/local/share/fish/vendor_completions.d/nyxctl.fish",
        "usr/local/share/man/man5/nyx.toml.5",
        "usr/local/share/man/man8/nyxd.8",
        "usr/local/share/zsh/site-functions/_nyxctl",
    }
    for unit in staged.glob("usr/local/lib/systemd/*/nyx.service"):
        text = unit.read_text()
        assert "ExecStart=/usr/local/bin/nyxd" in text
        assert "@" not in re.sub(r"@[a-z]", "", text)  # of system call groups
        assert str(staged) not in text


def test_installed_programs_run(staged, tmp_path):
    said = run(staged / "usr/local/bin/nyxctl", "version")
    assert said.returncode == 0
    assert said.stdout.startswith("nyxctl ")
    home = Home(tmp_path)
    said = run(staged / "usr/local/bin/nyxd", "--check", "--config", str(home.file))
    assert (said.returncode, said.stdout) == (0, f"{home.file}: right; node test, 0 nodes known\n")


def test_a_shell_completes_with_what_is_installed(staged):
    """As bash-completion does: it reads the file that bears the command's name, then calls its function."""
    script = staged / "usr/local/share/bash-completion/completions/nyxctl"
    asked = f"source {script}; COMP_WORDS=(nyxctl doc); COMP_CWORD=1; _nyxctl_completion nyxctl; echo ${{COMPREPLY[@]}}"
    path = f"{staged}/usr/local/bin:{os.environ['PATH']}"
    said = subprocess.run(["bash", "-c", asked], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert (said.stdout.split(), said.stderr) == (["doctor"], "")


def test_the_example_lacks_nothing_but_the_network(staged):
    said = run(staged / "usr/local/bin/nyxd", "--check", "--config", str(staged / "etc/nyx/nyx.toml"))
    assert said.returncode == 78
    assert len(said.stderr.splitlines()) == 1
    assert "directory.signers" in said.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze (Debian: systemd) is not installed")
class TestSystemd:
    """What systemd's own tools say."""

    @pytest.mark.parametrize("kind", ["system", "user"])
    def test_units_are_understood(self, staged, tmp_path, kind):
        text = (staged / f"usr/local/lib/systemd/{kind}/nyx.service").read_text()
        unit = tmp_path / "nyx.service"
        unit.write_text(text.replace("/usr/local/", f"{staged}/usr/local/"))
        (tmp_path / "run").mkdir(0o700)
        found = subprocess.run(
            ["systemd-analyze", f"--{kind}", "verify", "--man=no", str(unit)],
            env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path / "run")}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (found.returncode, found.stderr) == (0, "")

    def test_a_mistake_in_a_unit_would_be_seen(self, staged, tmp_path):
        text = (staged / "usr/local/lib/systemd/system/nyx.service").read_text()
        unit = tmp_path / "nyx.service"
        unit.write_text(text.replace("/usr/local/", f"{staged}/usr/local/").replace("ProtectClock=", "ProtectClocks="))
        assert "'ProtectClocks'" in run("systemd-analyze", "verify", "--man=no", unit).stderr

    def test_the_unit_is_exposed_to_little(self, staged):
        unit = staged / "usr/local/lib/systemd/system/nyx.service"
        said = run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", unit)
        assert said.returncode == 0, said.stdout
        assert "Overall exposure level" in said.stdout

    @pytest.mark.root
    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_the_user_and_the_folders_are_made(self, staged, tmp_path):
        (tmp_path / "etc").mkdir()
        for program, folder in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
            shutil.copytree(staged / "usr/local/lib" / folder, tmp_path / "usr/lib" / folder)
            said = run(program, f"--root={tmp_path}", *(["--create"] if program == "systemd-tmpfiles" else []))
            assert said.returncode == 0, said.stderr
        line = (tmp_path / "etc/passwd").read_text()
        assert line.startswith("nyx:")
        assert line.endswith(":/var/lib/nyx:/usr/sbin/nologin\n")
        state = (tmp_path / "var/lib/nyx").stat()
        assert (state.st_uid, state.st_mode & 0o777) == (int(line.split(":")[2]), 0o700)


def test_a_second_installation_keeps_the_configuration_and_what_is_uninstalled_leaves_it(staged):
    before, configuration = files(staged), staged / "etc/nyx/nyx.toml"
    configuration.write_text("# mine\n")
    make("install", staged)
    assert {name for name in files(staged) ^ before if "__pycache__" not in name} == set()
    assert configuration.read_text() == "# mine\n"
    said = make("uninstall", staged)
    assert files(staged) == {"etc/nyx/nyx.toml"}
    assert "/var/lib/nyx" in said
    make("uninstall", staged)
    assert configuration.read_text() == "# mine\n"
