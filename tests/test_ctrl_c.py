"""Semantics: Ctrl-C while a command is starting is one line, and exit code 130."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ttrl_jax import ctrl_c

ROOT = Path(__file__).parent.parent
# Tests that run as a job in the background have SIGINT ignored, and so has what they start.
BEGIN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(child: subprocess.Popen, *, behind: str) -> tuple[int, str]:
    """Send SIGINT once the module `behind` is there, of those whose times -X importtime prints -> (exit code, the rest
    of stderr)."""
    try:
        for line in child.stderr:
            if line.rpartition("|")[2].strip() == behind:
                child.send_signal(signal.SIGINT)
                break
        rest = child.stderr.read()
        return child.wait(timeout=60), rest
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(
    ("command", "behind"),
    [
        ("train", "jax"),
        ("export", "jax"),
        *[pytest.param(each, "jax", marks=pytest.mark.slow) for each in ("evaluate", "merge", "plan", "report")],
        ("train", "absl.flags"),
        ("train", "numpy"),
        pytest.param("train", "orbax.checkpoint", marks=pytest.mark.slow),  # among the last
    ],
)
def test_while_modules_are_imported(command: str, behind: str):
    right = "RUN" if command in ("export", "merge", "report") else "--config=configs/quickstart_sums.py"
    child = start("-X", "importtime", "-m", f"ttrl_jax.{command}", right)
    code, said = interrupt(child, behind=behind)
    assert code == 128 + signal.SIGINT, said
    assert [line for line in said.splitlines() if not line.startswith("import time:")] == ["interrupted"]


AS_A_LIBRARY = """
import signal
from ttrl_jax import cli
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_a_program_that_imports_the_package_is_left_alone():
    child = start("-c", AS_A_LIBRARY)
    assert child.communicate(timeout=60)[1] == "" and child.returncode == 0


def test_it_raises_again_once_the_command_has_begun():
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ctrl_c.ends_at_once()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ctrl_c.raises()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job in the background
        ctrl_c.ends_at_once()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)
