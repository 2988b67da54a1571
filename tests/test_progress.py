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
with Progress(5, title="quickstart") as progress:
    progress.resumed(1)
    progress.line("compiling decode (ids int32[8, 64]) [bold] ...")
    progress.phase("sampling [37] %, 812 tok/s")
    time.sleep(0.6)
    progress.step(2, "episode 1/3, majority 0.75")
    time.sleep(0.6)
    print("a stray print")
    progress.step(5, "episode 3/3, majority 1.00, " + "reward 1.000, " * 5 + "and at the end 12 more words")
"""


def run_on_a_terminal(columns=100, raw=False, **more):
    """What a terminal of `columns` columns is sent, escape sequences removed. more: of the environment."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"} | more
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
    return output.decode() if raw else re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())


def test_a_terminal_gets_a_bar_with_steps_times_summary_and_phase():
    screen = run_on_a_terminal()
    assert re.search(r"quickstart [━╸╺ ]+ 1/5 elapsed 0:\d\d ETA after the", screen)
    assert re.search(r"quickstart [━╸╺ ]+ 2/5 elapsed 0:\d\d ETA after the", screen)
    assert re.search(r"quickstart [━╸╺ ]+ 5/5 elapsed 0:\d\d ETA 0:00", screen)
    assert "  sampling [37] %, 812 tok/s" in screen and "  episode 3/3, majority 1.00" in screen
    # Printed once each, whole, although the bar is redrawn below them all the time.
    assert screen.count("compiling decode (ids int32[8, 64]) [bold] ...") == 1
    assert screen.count("a stray print") == 1
    assert screen.rstrip().endswith("12 more words")


def test_a_pipe_gets_plain_lines(tmp_path):
    env = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"}
    child = subprocess.run([sys.executable, "-c", RUN], env=env, stdout=subprocess.PIPE, text=True, check=True)
    lines = child.stdout.splitlines()
    assert lines[0] == "compiling decode (ids int32[8, 64]) [bold] ..."
    assert re.fullmatch(
        r"quickstart 2/5 \| episode 1/3, majority 0\.75 \| \d\.\d s/step, ETA after the next step", lines[1]
    )
    assert lines[2] == "a stray print"
    assert re.fullmatch(
        r"quickstart 5/5 \| episode 3/3, majority 1\.00, .* 12 more words \| \d\.\d s/step, ETA 0:00", lines[3]
    )
    assert len(lines) == 4


@pytest.fixture
def clock(monkeypatch):
    """Seconds, in a list of one, that time.monotonic() gives."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def now(monkeypatch):
    """Seconds, in a list of one, that time.monotonic() gives."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_long_phase_is_reported_now_and_then(capsys, now):
    with Progress(3, title="run") as progress:
        for second in range(200):
            now[0] = 100.0 + second
            progress.phase(f"sampling {second}")
        progress.step(1, "x")
        now[0] = 305.0
        progress.phase("sampling again")
    assert capsys.readouterr().out.splitlines() == [
        "  sampling 10",
        "  sampling 30",
        "  sampling 70",
        "  sampling 150",
        "run 1/3 | x | 199.0 s/step, ETA after the next step",
    ]


def test_sampling_is_shown_with_its_share_speed_and_the_time_left(capsys, now):
    with Progress(1, title="run") as progress:
        show = progress.tokens("evaluating data")
        now[0] = 120.0
        show(5000, 0.25)
    assert capsys.readouterr().out == "  evaluating data 25%, 5,000 tokens, 250 tokens/s, 1:00 left\n"


def test_a_phase_counts_down_to_what_was_expected(capsys, now):
    with Progress(1, title="run") as progress:
        now[0] = 120.0
        progress.phase("updating", expected=70.0)
    assert capsys.readouterr().out == "  updating, 1:10 left\n"


def test_the_eta_leaves_out_the_first_step_and_compiles(capsys, now):
    """Hand-worked: steps of 60, 30 (20 of them compiles) and 12 seconds; a mean of 11 for the three that are left."""
    with Progress(6, title="run") as progress:
        for n, (seconds, compiles) in enumerate([(60, 0), (30, 20), (12, 0)], start=1):
            now[0] += seconds
            for took in (None, float(compiles)):
                progress.compiling("decode, 8 x 64 rows, cache 512", "weights 29 arrays 2.4 MB", took)
            progress.step(n, "x")
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")] == [
        "run 1/6 | x | 60.0 s/step, ETA after the next step",
        "compiling decode, 8 x 64 rows, cache 512 ... 20.0 s",
        "run 2/6 | x | 10.0 s/step, ETA 0:40",
        "run 3/6 | x | 12.0 s/step, ETA 0:33",
    ]


def test_what_compiles_is_said_in_full_on_request(capsys):
    with Progress(1, title="run", compiles=True) as progress:
        progress.compiling("cache size", "layer 2 arrays 1.0 MB, slots=128", 0.01)
    assert capsys.readouterr().out == "compiling cache size (layer 2 arrays 1.0 MB, slots=128) ... 0.0 s\n"


@pytest.mark.parametrize("name, value", [("COLAB_RELEASE_TAG", "release-colab"), ("TERM", "xterm-color")])
def test_a_notebook_gets_plain_lines_though_its_commands_run_on_a_terminal(name, value):
    assert "\x1b[1A" in run_on_a_terminal(raw=True)
    notebook = run_on_a_terminal(raw=True, **{name: value})
    assert "\x1b" not in notebook and len(notebook.splitlines()) == 4


@pytest.mark.parametrize("columns", [60, 80])
def test_on_a_narrow_terminal_nothing_is_cut(columns):
    screen = run_on_a_terminal(columns)
    assert max(len(line) for line in re.split(r"[\r\n]+", screen)) <= columns and "…" not in screen
    assert "12 more words" in " ".join(screen.split())


@pytest.mark.parametrize("seconds, clock", [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (90061, "25:01:01")])
def test_durations_read_like_a_clock(seconds, clock):
    assert progress_module._clock(seconds) == clock
