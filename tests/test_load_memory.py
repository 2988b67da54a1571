"""Semantics: loading holds one tensor at a time on the host, not the model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_load_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="measured through Linux's /proc")
def test_loading_holds_the_largest_tensor_and_a_fifth_of_the_model():
    """A 223 MB checkpoint on 1 and on 8 devices; the script says what is measured."""
    command, environment = (
        [sys.executable, SCRIPT, "--width=512"],
        os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)},
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "8 devices: 223 MB" in done.stdout, done.stdout + done.stderr
