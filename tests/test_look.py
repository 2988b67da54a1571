"""Hand-worked: a run as text."""

import json

import pytest

from ttrl_jax import cli, commands, look
from ttrl_jax.look import sparkline

pytestmark = pytest.mark.usefixtures("fresh_flags")


@pytest.mark.parametrize(
    ("values", "width", "axis", "bars"),
    [
        ([0, 1], 10, (0, 1), "▁█"),
        ([0, 0.5, 1, 1], 2, (0, 1), "▃█"),  # means of 0.25 and 1
        ([5, 5], 10, None, "▁▁"),
        ([2, 4, 3], 3, None, "▁█▅"),
        ([-1, 9], 2, (0, 1), "▁█"),
    ],
)
def test_a_sparkline_is_means_on_an_axis(values, width, axis, bars):
    assert sparkline(values, width=width, axis=axis) == bars


@pytest.fixture
def run(tmp_path):
    """A run of three of four steps, evaluated before the first."""
    rows = [
        {"step": step, "vote/majority_ratio": 0.25 * step, "update/entropy": 1.0}
        | ({"eval/data/avg@4": 0.125, "eval/data/majority_ratio": 0.5} if step == 0 else {})
        for step in range(3)
    ]
    visit = {"step": 2, "question": 7, "label": "42", "share": 0.5, "flipped": True, "counts": [2, 1]}
    sample = {"response": r"so \boxed{42}", "answer": "42"}
    write = {
        "metrics.jsonl": rows,
        "votes.jsonl": [visit | {"step": 1, "label": "41"}, visit],
        "rollouts/train_000002.jsonl": [{"question": "How many?", "label": "42", "samples": [sample]}],
    }
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    for name, lines in write.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"config": {"eval": {"samples": 4, "k": []}}, "model": {}}))
    return folder


def test_a_run_is_shown_as_far_as_it_went(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["look", str(run)])
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(look.main, commands.LOOK) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "run: 3 steps, not finished"
    assert "not evaluated since step 0" in out and not any("41" in line for line in out)
    assert "majority ratio        0.000 ▁▃▅ 0.500" in out
    assert "  question 7: 0.50 '42', another label than before" in out
    assert out[-1] == r"  'so \\boxed{42}'" and max(map(len, out)) <= 80


def test_what_is_no_run_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["look", str(tmp_path / "nothing")])
    assert cli.run(look.main, commands.LOOK) == 2
    assert "nothing" in capsys.readouterr().err
