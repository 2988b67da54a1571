"""Hand-worked: what is measured of a checkpoint by its votes. Semantics: which one is taken. Golden: runs that learned
and a run that collapsed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.choice import Candidate, asked, best, candidates, ranked
from ttrl_jax.run.metrics import write_json, write_jsonl
from ttrl_jax.run.visits import changed, diversity, read_visits

GOLDEN = Path(__file__).parent / "golden" / "choice"


def visit(
    step: int, question: int, label: str | None, counts: Sequence[int], *, silent: int = 0, flipped: bool | None = False
) -> dict[str, Any]:
    """A line of votes.jsonl; the first of the counts is the label's."""
    votes = sum(counts) + silent
    shares = [count / votes for count in counts] + [0.0, 0.0]
    return {"step": step, "question": question, "label": label, "share": shares[0], "runner_up": shares[1],
            "counts": list(counts), "no_answer": silent, "length": 5.0, "flipped": flipped}  # fmt: skip


# Two questions, each a step, three episodes, 10 votes each.
VISITS = [
    visit(0, 0, "5", [6, 3], silent=1, flipped=None),  # clear: 0.6 - 0.3
    visit(1, 1, "7", [5, 3, 2], flipped=None),  # not clear: 0.5 - 0.3
    visit(2, 0, "5.0", [8, 2]),  # the same label, spelled in another way
    visit(3, 1, "9", [8, 1, 1], flipped=True),  # clear now
    visit(4, 0, "9", [10], flipped=True),
    visit(5, 1, "9", [10]),
]


def test_what_is_measured_by_hand():
    start, second, third = candidates(VISITS, episode=2)
    two = pytest.approx(math.log(2))  # as many labels as questions
    assert start == Candidate(0, share=pytest.approx(0.55), diversity=two, silent=0.05, changed=0.0)
    # Of question 0 the label was clear before step 2, and it did not flip; that of question 1 was not.
    assert second == Candidate(2, share=pytest.approx(0.8), diversity=two, silent=0.0, changed=0.0)
    # Both were clear before step 4, and that of question 0 is another now. One label for two questions.
    assert third == Candidate(4, share=1.0, diversity=0.0, silent=0.0, changed=0.5)
    assert [each.step for each in ranked([start, second, third])] == [2, 0]


def test_a_label_that_came_back_has_not_changed():
    there = [*VISITS[:4], visit(4, 0, "6", [10], flipped=True), VISITS[5], visit(6, 0, "5", [9, 1], flipped=True)]
    there.append(visit(7, 1, "9", [9, 1]))
    assert [each.changed for each in candidates(there, episode=2)] == [0.0, 0.0, 0.5, 0.0]


def test_how_different_labels_are():
    """Of 3 yes and 1 no: -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.5623 nats."""
    assert diversity(["yes"] * 3 + ["no"]) == pytest.approx(0.5623, abs=1e-4) and diversity(["yes"] * 9) == 0
    assert diversity("abcd") == pytest.approx(math.log(4)) and diversity([]) == 0
    # At steps 4 and 5 both questions are there, whose labels were clear before; at step 2 it was that of question 0.
    assert changed(VISITS, [4, 5]) == [True, False] and changed(VISITS, [2, 3]) == [False] and changed(VISITS, []) == []


def test_yes_and_no_that_collapse_are_not_taken():
    """Two labels to four questions, then one: half as many, which yes and no have at the least."""
    rows = [
        visit(4 * episode + q, q, "yes" if episode == 1 or q % 2 else "no", [6 + 3 * episode, 4 - 3 * episode])
        for episode in range(2)
        for q in range(4)
    ]
    start, after = candidates(rows, episode=4)
    assert (start.diversity, after.diversity) == (pytest.approx(math.log(2)), 0) and after.share > start.share
    assert ranked([start, after]) == [start]


def test_only_whole_episodes_are_measured():
    assert [each.step for each in candidates(VISITS[:5], episode=2)] == [0, 2]
    assert [each.step for each in candidates(VISITS, episode=2, steps=[3, 1, 5, 6])] == [1, 3]
    assert [*candidates([], episode=2)] == [] == ranked([]) == ranked(candidates(VISITS, episode=2, steps=[2]))
    silent = [visit(0, 0, None, [], silent=4, flipped=None), visit(1, 1, None, [], silent=4, flipped=None)]
    assert [*candidates(silent, episode=2)] == [Candidate(0, 0.0, 0.0, 1.0, 0.0)]


START = Candidate(0, share=0.4, diversity=0.8, silent=0.1, changed=0.0)


@pytest.mark.parametrize(
    ("after", "taken"),
    [
        ({}, True),
        ({"share": 0.4}, False),  # no more agreement
        ({"diversity": 0.4}, True),  # half of the entropy of the labels
        ({"diversity": 0.39}, False),
        ({"silent": 0.2}, True),  # a tenth more
        ({"silent": 0.21}, False),
        ({"changed": 0.25}, True),
        ({"changed": 0.26}, False),
    ],
)
def test_what_may_be_taken(after: dict[str, float], taken: bool):
    other = Candidate(**({"step": 8, "share": 0.5, "diversity": 0.8, "silent": 0.1, "changed": 0.0} | after))
    assert ranked([START, other]) == [other, START][not taken :]


def test_the_best_first_and_of_equal_ones_the_earlier():
    shares = {8: 0.6, 16: 0.7, 24: 0.7, 32: 0.5}
    found = ranked([START, *(Candidate(step, x, 0.8, 0.1, 0.0) for step, x in shares.items())])
    assert [each.step for each in found] == [16, 24, 8, 32, 0]


def test_the_best_of_those_that_are_saved():
    assert best(VISITS, [4, 2], episode=2, most=2) == [2] and best(VISITS, [4], episode=2, most=2) == []
    assert best(VISITS, [], episode=2, most=1) == [] and best(VISITS, [2], episode=2, most=0) == []


@pytest.mark.parametrize("name", ["collapse", "learning", "random_labels"])
def test_runs_of_the_quickstarts(name: str):
    """Golden: the votes of seed 0 of three runs (docs/science.md). Their first lines have the share of right votes in
    the episode after each step. What collapses ends in full agreement, and the start is taken; so with random labels.
    What learns is taken at its best."""
    lines = (GOLDEN / f"{name}.jsonl").read_text().splitlines()
    right = {int(step): share for step, share in json.loads(lines[0]).items()}
    keys = ("step", "question", "label", "share", "runner_up", "counts", "no_answer", "flipped")
    visits = [dict(zip(keys, json.loads(line), strict=True)) for line in lines[1:]]
    measured = list(candidates(visits, episode=8))
    agreed = max(measured, key=lambda each: each.share)
    chosen = ranked(measured)[0].step
    assert [each.step for each in measured] == list(range(0, 80, 8))
    if name == "learning":
        assert chosen == agreed.step > 0 and right[chosen] == max(right.values()) > right[0] + 0.3
    else:
        assert chosen == 0 and right[0] == max(right.values())
    if name == "collapse":
        assert agreed.share > 0.99 and right[agreed.step] == 0.0


# ---- the checkpoints of a run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the votes above and checkpoints after 2, 4 and 6 steps."""
    config = {"model": {"path": "m"}, "data": {"drop_last": False}, "rollout": {"prompts": 1}}
    questions = {"data": {"count": 2, "sha256": "0"}}
    write_json(tmp_path / "config.json", {"config": config, "model": {}, "questions": questions})
    write_jsonl(tmp_path / "votes.jsonl", VISITS)
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, {"x": jnp.float32(step)}, {})
    return tmp_path


def ask(run: Path, given: str | None) -> int | None:
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        return asked(run, checkpoints, given)


def test_what_is_asked_for(run: Path):
    assert [ask(run, given) for given in (None, "last", "chosen", "4", "9")] == [6, 6, 2, 4, 9]
    for returned in ("trained", None):
        write_json(run / "summary.json", {"certificate": {"returned": returned}} if returned else {})
        assert ask(run, None) == 6
    for wrong in ("newest", "-1", "2.0", ""):
        with pytest.raises(InputError, match=f"--step must be a number of steps, last or chosen, got '{wrong}'"):
            ask(run, wrong)


def test_where_the_start_is_returned(run: Path):
    write_json(run / "summary.json", {"certificate": {"returned": "start"}})
    with pytest.raises(InputError, match="the certificate of .* returns the start model.*--step last"):
        ask(run, None)
    assert (ask(run, "last"), ask(run, "chosen"), ask(run, "4")) == (6, 2, 4)  # what is asked for by name is given
    (run / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary.json, which may hold a certificate, is damaged"):
        ask(run, None)
    write_jsonl(run / "votes.jsonl", [row | {"share": 0.5} for row in VISITS])
    with pytest.raises(InputError, match=r"none of the checkpoints of .* \(6, 4, 2\) is better than the start"):
        ask(run, "chosen")


def test_damaged_lines_are_passed_over(run: Path):
    bad = [{"step": 0}, VISITS[0] | {"share": None}, VISITS[0] | {"counts": 3}, VISITS[0] | {"label": 5}]
    bad += [VISITS[0] | {"counts": [], "no_answer": 0}, VISITS[0] | {"step": "0"}, VISITS[0] | {"counts": ["3"]}]
    write_jsonl(run / "votes.jsonl", [*bad, *VISITS])
    assert read_visits(run) == json.loads(json.dumps(VISITS)) and ask(run, "chosen") == 2


def test_a_run_without_a_checkpoint_or_without_its_number_of_questions(run: Path):
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", config | {"questions": {}})
    with pytest.raises(InputError, match="how many questions"):
        ask(run, "chosen")
    (run / "none").mkdir()
    with Checkpoints(run / "none", keep=None) as checkpoints:
        assert [asked(run, checkpoints, given) for given in (None, "last", "chosen")] == [None] * 3


def test_the_best_stay_beside_the_newest(tmp_path: Path):
    """keep=1: the newest alone, and those that are named at a save; these go at a save that names others."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        left = []
        for step, kept in ((2, []), (4, [2]), (6, [2]), (8, [6, 2]), (10, [6])):
            checkpoints.save(step, {"x": jnp.float32(step)}, {}, best=kept)
            left.append(checkpoints.steps())
    assert left == [[2], [4, 2], [6, 2], [8, 6, 2], [10, 6]]
