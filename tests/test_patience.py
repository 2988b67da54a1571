"""Hand-worked: when a run has waited long enough. Invariance: one that stopped early goes on bit by bit as one that was
never to stop."""

import json
from pathlib import Path
from typing import Any

import pytest
from finished_run import results
from test_choice import visit
from test_resume import finish, saved

from ttrl_jax.report.data import Run
from ttrl_jax.report.result import facts
from ttrl_jax.resume import nothing_left
from ttrl_jax.run.folder import Changes
from ttrl_jax.run.patience import sentence, weary

EPISODE = 2


def visits(*shares: float) -> list[dict[str, Any]]:
    """Two questions, each a step; of 10 votes so many are for the label in each episode. No label is ever clear."""
    return [
        visit(
            EPISODE * episode + question,
            question,
            str(question),
            [round(10 * share)] * 2,
            silent=10 - 2 * round(10 * share),
        )
        for episode, share in enumerate(shares)
        for question in range(2)
    ]


@pytest.mark.parametrize(
    ("shares", "patience", "best"),
    [
        ((0.3, 0.3, 0.3), 2, 0),  # the models after 0, 2 and 4 steps are judged: two episodes after the start
        ((0.3, 0.3), 2, None),
        ((0.2, 0.4, 0.3, 0.3), 2, 2),  # the best is that after 2 steps, the newest that after 6
        ((0.2, 0.4, 0.3, 0.3), 3, None),
        ((0.2, 0.4, 0.3, 0.5), 1, None),  # it has come
        ((0.2, 0.4, 0.3), 1, 2),
        ((0.2, 0.4, 0.4, 0.4), 2, 2),  # of equal ones the earlier is better
        ((0.3,) * 9, 0, None),  # 0 never stops
        ((), 1, None),
    ],
)
def test_how_long_a_run_waits(shares, patience, best):
    assert weary(visits(*shares), episode=EPISODE, patience=patience) == best


def test_a_run_that_was_made_longer_waits_anew():
    """After 3 episodes the newest model that is judged is that after 4 steps, which is 2 episodes after the start. Made
    longer after 6 steps, the run waits from there: after 5 episodes that after 8 steps is judged, 1 episode later."""
    ways = {"episode": EPISODE, "patience": 1}
    assert weary(visits(*(0.3,) * 3), **ways) == 0
    assert [weary(visits(*(0.3,) * episodes), **ways, since=6) for episodes in (3, 4, 5)] == [None, None, 0]


def test_what_a_summary_says_of_it():
    said = sentence({"patience": 1, "best": 0}, steps=4)
    assert "after 4 steps no model has been better than the start, by its votes, for 1 episode (" in said
    said = sentence({"patience": 3, "best": 24}, steps=48)
    assert "after 48 steps no model has been better than that after 24 steps, by its votes, for 3 episodes (" in said


@pytest.mark.parametrize(
    ("summary", "patience", "longer", "left"),
    [
        ({"steps": 8}, 0, False, False),
        ({"steps": 4}, 3, False, True),
        ({"steps": 4, "stopped": {"patience": 3, "best": 0}}, 3, False, False),
        ({"steps": 4, "stopped": {"patience": 3, "best": 0}}, 2, False, False),
        ({"steps": 4, "stopped": {"patience": 3, "best": 0}}, 4, False, True),
        ({"steps": 4, "stopped": {"patience": 3, "best": 0}}, 0, False, True),
        ({"steps": 4, "stopped": {"patience": 3, "best": 0}}, 3, True, True),
    ],
)
def test_whether_a_finished_run_goes_on(summary, patience, longer, left):
    changes = Changes({"episodes": (2, 4)} if longer else {})
    assert nothing_left(summary, total=8, patience=patience, changes=changes) is not left


@pytest.mark.parametrize(
    ("steps", "finished", "said"),
    [
        (4, True, "4 of 8, stopped early, 2 an episode"),
        (4, False, "4 of 8, 2 an episode"),
        (8, True, "8, 2 an episode"),
    ],
)
def test_what_a_report_says_of_its_steps(tmp_path: Path, steps: int, finished: bool, said: str):
    rows = [{"step": step, "vote/majority_ratio": 0.5} for step in range(steps)] + [{"step": steps}]
    settings = {"episodes": 4, "rollout.prompts": 2, "data.drop_last": False}
    found = Run("one", tmp_path, settings=settings, finished=finished, rows=rows, questions={"data": 4})
    assert dict(facts(found))["steps"] == said


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_bit_by_bit(tmp_path: Path):
    """In so few steps hardly anything is learned: a model is better than the one before it by chance alone."""
    changes, patience = ["--config.episodes=8"], "--config.stop.patience=1"
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    finish(alone, *changes)
    output = finish(workdir, *changes, patience)
    summary = json.loads((workdir / "summary.json").read_text())
    steps, best = summary["steps"], summary["stopped"]["best"]
    assert steps < 8 and steps == best + 2 and summary["stopped"]["patience"] == 1
    assert "stopped early" in output and saved(workdir)[-1:] and str(steps) in saved(workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(steps + 1)) and "vote/majority_ratio" not in rows[-1]
    assert "eval/data/avg@2" in rows[-1] and (workdir / "rollouts" / f"eval_data_{steps:06}.jsonl").is_file()
    assert f"{workdir} is finished:" in finish(workdir, *changes, patience)  # nothing is computed anew
    output = finish(workdir, *changes)
    assert f"resumed after step {steps}" in output and "stop.patience: 0 from here on, 1 before" in output
    assert results(workdir) == results(alone)


@pytest.mark.slow
def test_more_episodes_go_on_and_wait_anew(tmp_path: Path):
    changes = ["--config.train.learning_rate=0", "--config.train.weight_decay=0", "--config.stop.patience=1"]
    workdir = tmp_path / "run"
    finish(workdir, *changes, "--config.episodes=8")
    first = json.loads((workdir / "summary.json").read_text())
    output = finish(workdir, *changes, "--config.episodes=20")
    found = json.loads((workdir / "summary.json").read_text())
    assert f"resumed after step {first['steps']}" in output
    # Its first new model is judged two episodes later, and the next one has waited for one.
    assert first["steps"] + 2 <= found["steps"] < 20 and found["stopped"]["patience"] == 1
    assert not (workdir / "rollouts" / f"eval_data_{first['steps']:06}.jsonl").exists()
