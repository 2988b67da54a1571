"""Semantics: on this machine's CPU a plan's bytes are those that a run takes, within 15 %."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_plan_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="measured through Linux's /proc")
def test_a_run_takes_what_was_planned():
    """A random model of 28 million weights; the script says what is measured."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)}
    command = [sys.executable, SCRIPT, "--devices=2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "update: planned" in done.stdout, done.stdout + done.stderr
