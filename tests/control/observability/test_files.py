"""Rules and dashboard: every expression names metrics, labels and reasons that exist; the rules fire when they should."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from control.cli import run
from control.metrics import families
from control.observability import FILES, read
from nyx.stats import REFUSALS
from nyx.wire.codes import DROP_LABELS

PROMTOOL = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
CASES = Path(__file__).with_name("rules_test.yml")
EXPORTED = {name: {*f.labels, *(["le"] if name.endswith("_bucket") else [])} for f in families.FAMILIES for name in f.samples}
PROMETHEUS = {"job", "instance"}
REASONS = {*DROP_LABELS[1:], *REFUSALS}


def rules():
    """(record or alert, expression) of each rule."""
    text = read("rules")
    found = re.findall(r"- (record|alert): (\S+)\n +expr: (.+)\n", text)
    assert len(found) == text.count("expr:") == text.count("- record:") + text.count("- alert:")
    return [(name, expression) for _, name, expression in found]


def dashboard():
    """(panel's title, expression) of each query."""
    panels = json.loads(read("dashboard"))["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


RECORDED = {name for name, _ in rules() if ":" in name}


def wrong(expression):
    """What an expression names that does not exist."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"(?<![\w:])(?:nyx|up)[\w:]*", bare)) - {"up"}
    found = [name for name in names if name not in EXPORTED and name not in RECORDED]
    labels = {label for group in re.findall(r"(?:by|on) \(([^)]*)\)", bare) for label in re.split(r"[ ,]+", group)}
    labels |= set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", bare))
    known = PROMETHEUS.union(*(EXPORTED.get(name, {"reason", "worker"}) for name in names))
    reasons = {r for group in re.findall(r'reason=~?"([^"]*)"', expression) for r in group.split("|")}
    return [*found, *(labels - known), *(reasons - REASONS)]


@pytest.mark.parametrize(("where", "expression"), [*rules(), *dashboard()])
def test_every_expression_names_what_there_is(where, expression):
    assert wrong(expression) == [], where


def test_the_check_of_names_can_fail():
    assert wrong("rate(nyx_no_such_total[5m])") == ["nyx_no_such_total"]
    assert wrong("sum by (peer) (nyx_links)") == ["peer"]
    assert wrong('nyx_packets_dropped_total{reason="no_such"}') == ["no_such"]
    assert wrong("nyx:no_such:rate5m") == ["nyx:no_such:rate5m"]


def test_what_an_alert_says_uses_labels_that_its_rule_has():
    for block in read("rules").split("- alert: ")[1:]:
        used = set(re.findall(r"\$labels\.(\w+)", block))
        [expression] = re.findall(r"expr: (.+)", block)
        names = re.findall(r"nyx[\w:]*", expression)
        assert used <= PROMETHEUS.union(*(EXPORTED.get(name, {"worker"}) for name in names)), block.split("\n")[0]


def test_the_documentation_names_every_alert():
    text = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text("utf-8")
    assert [name for name, _ in rules() if ":" not in name and f"`{name}`" not in text] == []


def test_panels_do_not_overlap_and_ask_the_chosen_source():
    found = json.loads(read("dashboard"))
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
        assert at["x"] + at["w"] <= 24
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])


@pytest.mark.parametrize("name", list(FILES))
def test_the_command_prints_each_file(name, capsys):
    assert run(["monitoring", name]) == 0
    assert capsys.readouterr().out == read(name)
    assert run(["monitoring", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": "nyx.monitoring-file", "version": 1, "name": FILES[name], "content": read(name)
    }  # fmt: skip


@PROMTOOL
def test_promtool_takes_the_rules_and_each_alert_fires_when_it_should(tmp_path):
    shutil.copy(CASES, tmp_path)
    (tmp_path / "rules.yml").write_text(read("rules"))
    for command in (["check", "rules", "rules.yml"], ["test", "rules", CASES.name]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = set(re.findall(r"alertname: (\w+)", CASES.read_text()))
    assert tested == {name for name, _ in rules() if ":" not in name}
    (tmp_path / "rules.yml").write_text(read("rules").replace("nyx_ready == 0", "nyx_ready == 2"))
    done = subprocess.run(
        ["promtool", "test", "rules", CASES.name], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
