"""Semantics: what a terminal and a file get to see."""

import os
import pty
import re
import subprocess
import sys

import pytest

from ttrl_jax.run import progress as progress_module
from ttrl_jax.run.progress import Progress

RUN = """
import sys, time
from ttrl_jax.run.progress import Progress
with Progress(5, start=1, title="quickstart") as progress:
    progress.line("compiling decode (ids int32[8, 64]) [bold] ...")
    progress.phase("sampling [37] %, 812 tok/s")
    time.sleep(0.6)
    progress.step(2, "episode 1/3, majority 0.75")
    time.sleep(0.6)
    print("a stray print")
    progress.step(5, "episode 3/3, majority 1.00")
"""


def run_on_a_terminal(columns=100):
    """What a terminal of `columns` columns is sent, escape sequences removed."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"}
    child = subprocess.Popen([sys.executable, "-c", RUN], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # how Linux reports that the other end is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(ours)
    assert child.wait(timeout=30) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())


def test_a_terminal_gets_a_bar_with_steps_times_summary_and_phase():
    screen = run_on_a_terminal()
    assert re.search(r"quickstart [━╸╺ ]+ 1/5 elapsed 0:\d\d ETA \?", screen)
    assert re.search(r"quickstart [━╸╺ ]+ 2/5 elapsed 0:\d\d ETA 0:\d\d", screen)
    assert re.search(r"quickstart [━╸╺ ]+ 5/5 elapsed 0:\d\d ETA 0:00", screen)
    assert "  sampling [37] %, 812 tok/s" in screen and "  episode 3/3, majority 1.00" in screen
    # Printed once each, whole, although the bar is redrawn below them all the time.
    assert screen.count("compiling decode (ids int32[8, 64]) [bold] ...") == 1
    assert screen.count("a stray print") == 1
    assert screen.rstrip().endswith("episode 3/3, majority 1.00")


def test_a_pipe_gets_plain_lines(tmp_path):
    env = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"}
    child = subprocess.run([sys.executable, "-c", RUN], env=env, stdout=subprocess.PIPE, text=True, check=True)
    lines = child.stdout.splitlines()
    assert lines[0] == "compiling decode (ids int32[8, 64]) [bold] ..."
    assert re.fullmatch(r"quickstart 2/5 \| episode 1/3, majority 0\.75 \| \d\.\d s/step, ETA 0:\d\d", lines[1])
    assert lines[2] == "a stray print"
    assert re.fullmatch(r"quickstart 5/5 \| episode 3/3, majority 1\.00 \| \d\.\d s/step, ETA 0:00", lines[3])
    assert len(lines) == 4


def test_without_a_terminal_a_long_phase_is_reported_every_ten_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with Progress(3, start=0, title="run") as progress:
        for second in range(25):
            now[0] = float(second)
            progress.phase(f"sampling {second}")
        progress.step(1, "x")
        now[0] = 30.0
        progress.phase("sampling again")
    assert capsys.readouterr().out.splitlines() == [
        "  sampling 10",
        "  sampling 20",
        "run 1/3 | x | 24.0 s/step, ETA 0:48",
    ]


def test_tokens_are_shown_with_their_speed(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with Progress(1, start=0, title="run") as progress:
        show = progress.tokens("evaluating data")
        now[0] = 120.0
        show(5000)
    assert capsys.readouterr().out == "  evaluating data: 5000 tokens, 250 tokens/s\n"


@pytest.mark.parametrize("seconds, clock", [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (90061, "25:01:01")])
def test_durations_read_like_a_clock(seconds, clock):
    assert progress_module._clock(seconds) == clock
