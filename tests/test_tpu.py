"""Semantics: what XLA makes of a run's programs for TPUs, compiled for a slice of 8 chips that need not be there.

Skipped without libtpu, which `pip install -e ".[tpu,test]"` brings; then `pytest -q tests/test_tpu.py` runs it on any
machine, in about a minute on 2 quiet cores.
"""

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "compile_tpu.py"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@cache
def programs(tensor: int) -> dict[str, dict]:
    """Two layers of Qwen2.5-0.5B at the settings of AIME for v5e:2x4, in a process whose own devices are CPUs."""
    command = [sys.executable, SCRIPT, "--model=Qwen/Qwen2.5-0.5B", "--topology=v5e:2x4", "--layers=2"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run([*command, f"--tensor={tensor}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["attention"] == "splash" and told["mesh"] == {"data": 1, "fsdp": 8 // tensor, "tensor": tensor}
    return {row["program"]: row for row in told["programs"]}


def test_whole_rows_go_through_splash_and_the_decode_loop_does_not():
    calls = {name: row["splash_calls"] for name, row in programs(1).items()}
    assert calls["prefill"] == 2  # one in each layer, none of which is trained
    assert calls["score"] == 1  # the layers are scanned
    assert calls["gradient"] >= 3  # forward, and backward to the queries, and to keys and values
    assert calls["decode"] == calls["copy"] == calls["grow"] == 0


def test_the_decode_loop_moves_no_weights_cache_or_logits_between_chips():
    """Each chip has the whole weights and its own slots: all that it learns of the others is which samples have ended,
    as the free slots of a group are filled in order."""
    found = programs(1)["decode"]["loop_collectives"]
    assert found and found[0]["bytes"] < 10_000


def test_a_vocabulary_split_over_chips_is_not_gathered_in_the_decode_loop():
    """The logits of a chip's part go to where their votes are drawn; neither they nor the weights are gathered."""
    found = programs(2)["decode"]["loop_collectives"]
    assert any(one["kind"] == "all-to-all" for one in found)
    assert not any(one["kind"] == "all-gather" and one["bytes"] > 1e5 for one in found)


def test_a_step_of_training_gathers_weights():
    """Of what the loops move between chips, so that a program without any would not pass for one with little."""
    assert any(
        one["kind"] == "all-gather" and one["bytes"] > 1e6 for one in programs(1)["gradient"]["loop_collectives"]
    )
