"""Lines of the data plane's processes: who says them, scrubbed, and what becomes of an exception in a worker."""

import json
import subprocess
import sys

import pytest

CODE = """
from shards import say
from nyx.logline import Style
say.configure(Style({form!r}))
say.speak_as("worker 0")
say.say("debug", "quiet")
say.say("info", "met canary.example")
try:
    raise RuntimeError("no way to 93.184.216.34:443")
except RuntimeError:
    say.say_exception("this worker ends by a bug")
say.fail("cannot bind")
"""


def run(form):
    done = subprocess.run([sys.executable, "-c", CODE.format(form=form)], capture_output=True, text=True, check=True, timeout=60)
    return done.stderr


@pytest.mark.parametrize("form", ["text", "json", "journald"])
def test_lines_are_scrubbed_and_name_their_process(form):
    text = run(form)
    assert "canary" not in text
    assert "93.184" not in text
    assert "quiet" not in text
    assert "worker 0" in text
    assert "RuntimeError: no way to [address]" in text


def test_the_reason_of_an_end_is_plain_for_people_and_a_record_for_a_log():
    assert run("text").endswith("\nnyxd: cannot bind\n")
    assert [json.loads(line)["message"].split("\n")[0] for line in run("json").splitlines()] == [
        "met [name]",
        "this worker ends by a bug",
        "cannot bind",
    ]
