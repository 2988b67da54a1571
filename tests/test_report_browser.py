"""Semantics: a report in headless Chromium: everything is drawn, and every control does what it says. Skipped where
Chromium or the package playwright is missing."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reports import HOSTILE, ballot, call, made_run, numbers

from ttrl_jax.run.metrics import write_jsonl

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("chromium") is None or importlib.util.find_spec("playwright") is None,
        reason="takes Chromium and playwright",
    ),
]


def test_every_control(tmp_path, fresh_flags, capfd, monkeypatch):
    """Questions that became right and wrong, hostile texts and formulas among them."""
    run = made_run(tmp_path / "a<b>&", {0: numbers(0.2, 0.3), 70: numbers(0.6, 0.8)}, questions=60, finished=True)
    for step, shift in ((0, 0), (60, 2)):
        rows = [ballot(f"{i}", (i + shift) % 5) for i in range(60)]
        for i, row in enumerate(rows):
            row["question"] = f"{row['question']}: what is $x^{{{i}}}$? {HOSTILE}"
            row["samples"] = [
                sample | {"response": f"{HOSTILE} \\boxed{{\\frac{{{i}}}{{2}}}}"} for sample in row["samples"]
            ]
            row["label"] = None if row["right"] is None else "0"
        write_jsonl(run / "rollouts" / f"train_{step:06}.jsonl", rows)
    assert call(monkeypatch, fresh_flags, capfd, run)[0] == 0
    command = [sys.executable, ROOT / "scripts" / "check_report.py", run / "report.html", "--widths", "390"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "became_right" in done.stdout and "became_wrong" in done.stdout
