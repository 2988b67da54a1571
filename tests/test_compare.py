"""Semantics: the comparison trains what it says, and its table and pictures say what the runs' files say."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ttrl_jax.run.metrics import write_json, write_jsonl

ROOT = Path(__file__).parent.parent
SMALL = [
    "--config.eval.tasks=()", "--config.episodes=2", "--config.rollout.prompts=4", "--config.data.limit=4",
    "--config.rollout.votes=4", "--config.train.samples=4", "--config.train.micro_tokens=512",
    "--config.train.minibatch_prompts=4", "--config.eval.samples=2",
]  # fmt: skip

sys.path.insert(0, str(ROOT / "scripts"))
import compare  # noqa: E402


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/compare.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300
    )


def made(where: Path, before: dict[str, float], after: dict[str, float], label: str, seed: int) -> Path:
    """A run of two steps."""
    config = {"seed": seed, "reward": {"label": label}}
    write_json(where / "config.json", {"config": config, "model": {}})
    rows = [{f"eval/data/{name}": x for name, x in numbers.items()} for numbers in (before, {}, after)]
    for step, row in enumerate(rows):
        row |= {"step": step, "audit/ground_truth_reward": (step + seed) / 4, "vote/majority_ratio": 0.5}
    write_jsonl(where / "metrics.jsonl", rows)
    return where


@pytest.mark.slow
def test_two_kinds_of_label_end_to_end(tmp_path: Path):
    out = tmp_path / "out"
    arguments = [
        "--config",
        "configs/quickstart_sums.py",
        "--out",
        str(out),
        "--labels",
        "majority,offline",
        "--seeds",
        "3",
    ]
    done = call(*arguments, *SMALL)
    assert done.returncode == 0, done.stderr
    summaries = [json.loads((out / f"{label}-seed3" / "summary.json").read_text()) for label in ("majority", "offline")]
    assert all(summary["steps"] == 2 for summary in summaries)
    assert summaries[0]["before"] == summaries[1]["before"]
    settings = json.loads((out / "offline-seed3" / "config.json").read_text())["config"]
    assert (settings["seed"], settings["reward"]["label"]) == (3, "offline")
    table = (out / "table.md").read_text()
    shown = [f"{summaries[0][when][name]:.3f}" for when in ("before", "after") for name in ("avg@2", "maj@2")]
    assert f"| the vote (TTRL) | trained on | {' | '.join(shown)} |" in table
    ElementTree.fromstring((out / "curves.svg").read_text())
    assert "majority-seed3" in (out / "report.html").read_text()
    again = call(*arguments, *SMALL)
    assert again.returncode == 0 and again.stdout.count("is finished") == 2


@pytest.fixture
def groups(tmp_path: Path):
    """Two seeds of the method and two of the control."""
    before, found = {"avg@4": 0.2, "maj@4": 0.5}, {}
    for label, ends in (("majority", (0.6, 0.8)), ("random", (0.1, 0.3))):
        paths = [
            made(tmp_path / f"{label}{seed}", before, {"avg@4": end, "maj@4": end + 0.1}, label, seed)
            for seed, end in enumerate(ends)
        ]
        [found[label]] = compare.by_seed(compare.read_runs([str(path) for path in paths]))
    return found


def test_table_and_findings_by_hand(groups):
    assert compare.labels_table(groups).markdown().splitlines()[0] == (
        "| labels | questions | avg@4 before | maj@4 before | avg@4 after | maj@4 after |"
    )
    assert "| 0.700 (0.600 to 0.800) | 0.800 (0.700 to 0.900) |" in compare.labels_table(groups).markdown()
    assert compare.findings(groups) == [
        "The start model: avg@4 0.200; its vote, maj@4 0.500.",
        "Labels by the vote (TTRL): avg@4 0.700, above the start, above its vote.",
        "Labels by random answers (control): avg@4 0.200, not above the start, not above its vote.",
    ]


def test_a_table_has_greedy_answers_where_they_were_measured(tmp_path: Path):
    made(
        tmp_path / "run",
        {"avg@4": 0.2, "maj@4": 0.5, "greedy": 0.1},
        {"avg@4": 0.6, "maj@4": 0.7, "greedy": 0.9},
        "majority",
        0,
    )
    [group] = compare.by_seed(compare.read_runs([str(tmp_path / "run")]))
    head, _, row = compare.labels_table({"majority": group}).markdown().splitlines()
    assert head.endswith("| greedy before | avg@4 after | maj@4 after | greedy after |")
    assert [cell.split()[0] for cell in row.split("|")[3:-1]] == ["0.200", "0.500", "0.100", "0.600", "0.700", "0.900"]


def test_courses_by_hand(groups):
    """Means over both ends and over the seeds: the first 8 of 12 steps have 0.25, half of the last 8 have 0.75."""
    for run in groups["majority"].runs:
        run.rows = [{"step": i, "audit/label_accuracy": 0.25 if i < 8 else 0.75} for i in range(12)]
    assert compare.courses(groups) == [
        "Labels by the vote (TTRL), first to last 8 steps: labels that are the truth 0.250 to 0.500.",
        "Labels by random answers (control), first to last 8 steps: votes for the label 0.500 to 0.500.",
    ]


def test_table_of_algorithms_by_hand(tmp_path: Path):
    """Two seeds each; the oracle gains 0.6, PPO half of it. Three steps of 1, 2 and 6 seconds, evaluations apart."""
    groups = {}
    for arm, ends in (("grpo", (0.7, 0.9)), ("ppo", (0.4, 0.6)), ("truth", (0.8, 0.8))):
        paths = []
        for seed, end in enumerate(ends):
            path = tmp_path / f"{arm}{seed}"
            made(path, {"avg@4": 0.2, "maj@4": 0.5}, {"avg@4": end, "maj@4": end + 0.1}, "majority", seed)
            rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            for row, seconds in zip(rows, (1, 2, 6), strict=True):
                row |= {"time/sample": seconds / 2, "time/update": seconds / 2, "time/evaluate": 50.0}
            write_jsonl(path / "metrics.jsonl", rows)
            paths.append(str(path))
        [groups[arm]] = compare.by_seed(compare.read_runs(paths))
    head, _, *rows = compare.algorithms_table(groups).markdown().splitlines()
    assert head.endswith("| avg@4 after | maj@4 after | of the oracle's gain | seconds a step |")
    start = "0.200 (0.200 to 0.200) | 0.500 (0.500 to 0.500)"
    assert rows[0] == f"| GRPO | trained on | {start} | 0.800 (0.700 to 0.900) | 0.900 (0.800 to 1.000) | 1.00 | 2.00 |"
    assert rows[1] == f"| PPO | trained on | {start} | 0.500 (0.400 to 0.600) | 0.600 (0.500 to 0.700) | 0.50 | 2.00 |"
    assert rows[2].startswith("| true answers (oracle) | trained on |") and rows[2].endswith("| 1.00 | 2.00 |")
    assert "PPO: avg@4 0.500, above the start, not above its vote." in compare.findings(groups)


def test_picture_has_the_mean_of_the_seeds(groups):
    assert compare.mean_curve(groups["majority"], "audit/ground_truth_reward") == [(0, 0.125), (1, 0.375), (2, 0.625)]
    assert compare.mean_curve(groups["majority"], "audit/label_accuracy") == []
    root = ElementTree.fromstring(compare.picture(groups))
    lines = [each for each in root.iter() if each.tag.endswith("polyline") and "data-name" in each.attrib]
    assert [line.attrib["data-name"] for line in lines] == [
        "the vote (TTRL)", "random answers (control)", "votes for the label",
    ]  # fmt: skip
    heights = [[float(pair.split(",")[1]) for pair in line.attrib["points"].split()] for line in lines]
    assert heights[0] == heights[1] and heights[0] == sorted(heights[0], reverse=True)  # both rise; y points down
    assert re.search(r"prefers-color-scheme: dark", compare.picture(groups))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "majority,gold"], "'gold'"),
        (["--seeds", "0,0"], "once"),
        (["--config.seed=1"], "--seeds"),
        (["rest"], "'rest'"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as left:
        compare.parse(["--config", "configs/quickstart_sums.py", "--out", "nowhere", *arguments])
    assert left.value.code == 2 and words in capsys.readouterr().err
