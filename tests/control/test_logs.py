"""The control process's log: every way into it is scrubbed, and each form is whole."""

import json
import subprocess
import sys

import pytest

CODE = """
import asyncio, logging, sys, warnings
from control import logs
from nyx.logline import Style
logs.configure(Style({form!r}, {level!r}, {scrub}))
logging.getLogger("nyxd.control").info("asked by %s", "93.184.216.34:5555")
logging.getLogger("x").debug("quiet canary.example")
logging.getLogger("x").error("%d", "no number: canary.example")
warnings.warn("canary.example is late")
try:
    raise ValueError("canary.example does not answer")
except ValueError:
    logging.getLogger("nyxd.control").exception("a request failed")

async def fails():
    raise RuntimeError("a task met canary.example")

async def main():
    asyncio.create_task(fails())
    await asyncio.sleep(0)

asyncio.run(main())
raise OSError("cannot connect to canary.example:443")
"""


def run(form="text", level="info", scrub=True):
    code = CODE.format(form=form, level=level, scrub=scrub)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("form", ["text", "json", "journald"])
def test_no_way_into_the_log_leads_past_the_scrubber(form):
    text = run(form)
    assert "canary" not in text
    assert "93.184" not in text
    for told in ("asked by [address]", "a request failed", "[name] is late", "a task met [name]", "this process ends by a bug"):
        assert told in text


def test_json_lines_have_level_process_and_logger():
    records = [json.loads(line) for line in run("json").splitlines()]
    assert {r["process"] for r in records} == {"control"}
    assert [(r["level"], r["logger"]) for r in records][:3] == [
        ("info", "nyxd.control"),
        ("error", "x"),
        ("warning", "py.warnings"),
    ]
    assert "Traceback" in records[3]["message"]


def test_level_and_scrubbing_are_settings():
    assert "asked by" not in run(level="error")
    assert "quiet canary.example" in run(level="debug", scrub=False)
    assert "cannot connect to canary.example:443" in run(scrub=False)
