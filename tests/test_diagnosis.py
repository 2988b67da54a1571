"""Hand-worked: series whose course is known get the verdict and the numbers that they should. Semantics: no truth.
Golden: runs of the quickstarts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from ttrl_jax.run.diagnosis import Diagnosis, diagnose

STEPS = 48  # so that an end is a mean over 4 steps


def run(**signals: list[float]) -> list[dict[str, float]]:
    """Rows of metrics: a name has _ in place of the /."""
    names = {name: name.replace("_", "/", 1) for name in signals}
    return [
        {"step": step} | {names[name]: x for name, x in zip(signals, values, strict=True)}
        for step, values in enumerate(zip(*signals.values(), strict=True))
    ]


def ramp(first: float, last: float, *, start: int = 0, end: int = STEPS, steps: int = STEPS) -> list[float]:
    """`first` up to step `start`, then straight to `last` at step `end`, and there on."""
    return [float(x) for x in np.interp(range(steps), [start, end], [first, last])]


def flat(value: float) -> list[float]:
    return [value] * STEPS


def verdict_of(ratio: list[float]) -> str:
    return diagnose(run(vote_majority_ratio=ratio)).verdict


def test_learning():
    found = diagnose(run(vote_majority_ratio=ramp(0.2, 0.776), vote_vote_entropy=ramp(3.0, 0.12)))
    assert found.verdict == "learning"
    # 0.012 a step: the ends are means of steps 0 to 3 and 44 to 47; that of 40 to 43, 0.698, is the first within 0.05.
    assert "from 0.218 to 0.746 (means of the first and the last 4 steps)" in found.text
    assert "within 0.05 of that only at step 42: more episodes may teach more" in found.text
    assert "from 2.91 to 0.27 nats" in found.text and "Agreement is not truth" in found.text


def test_converged():
    found = diagnose(run(vote_majority_ratio=ramp(0.31, 0.93, end=10), vote_flip_rate=ramp(0.4, 0.0, end=10)))
    assert found.verdict == "converged"
    assert "to 0.930" in found.text and "within 0.05 of that since step 10" in found.text
    assert "34.0% at first, 0.0% at last" in found.text
    assert (
        verdict_of(ramp(0.31, 0.93, end=30)) == "learning"
    )  # it was there in the second half only, when the learning rate is low
    assert verdict_of(flat(0.95)) == "converged"  # nothing was left to learn
    dip = diagnose(run(vote_majority_ratio=ramp(0.98, 0.85, end=30)[:36] + [0.96] * 12))
    assert dip.verdict == "converged" and "rose" not in dip.text and "to 0.960" in dip.text
    assert "from 0.9 on little is left to agree on" in dip.text


def votes(*episodes: str, margin: float = 0.6, prompts: int = 8) -> list[dict[str, object]]:
    """Visits of one question for each letter of an episode, which is its label, `prompts` of them a step."""
    found, before = [], {}
    for i, (question, label) in enumerate(pair for labels in episodes for pair in enumerate(labels)):
        flipped = None if question not in before else before[question] != label
        before[question] = label
        found.append({"step": i // prompts, "question": question, "label": label, "share": 0.5 + margin / 2,
                      "runner_up": 0.5 - margin / 2, "flipped": flipped})  # fmt: skip
    return found


HEALTHY = "ABCDEFGHIJKLMNOP"  # 16 questions, with a label each


def test_agreement_on_one_answer_to_everything_is_a_collapse():
    rows = run(vote_majority_ratio=ramp(0.3, 1.0, end=20))
    visits = votes(HEALTHY, *[HEALTHY[:8] + "A" * 8] * 10, *["A" * 16] * 13)
    found = diagnose(rows, visits)
    assert found.verdict == "collapsing"
    assert "of the first 16 labels 16 were different, and the most common one had 6.2%" in found.text
    assert "of the last 16 it is 1 and 100.0%, while the majority ratio went from 0.352 to 1.000" in found.text
    assert diagnose(rows, votes(*[HEALTHY] * 24)).verdict == "converged"
    # The entropy of 16 labels is ln 16 = 2.77, of 8 A and 8 others 1.73; of 12 A and 4 others 0.91, less than half.
    assert diagnose(rows, votes(HEALTHY, *["A" * 8 + HEALTHY[8:]] * 23)).verdict == "converged"
    assert diagnose(rows, votes(HEALTHY, *["A" * 12 + HEALTHY[12:]] * 23)).verdict == "collapsing"
    # All labels were clear at first. The entropy of 12 A and 4 B is 0.562, of 10 A and 6 B 0.662, and of 15 A and 1 B
    # 0.234, less than half of both. Of the 16 labels 3 are others, no more than 0.2, and then 5.
    assert diagnose(rows, votes("A" * 12 + "BBBB", *["A" * 15 + "B"] * 23)).verdict == "converged"
    assert diagnose(rows, votes("A" * 10 + "BBBBBB", *["A" * 15 + "B"] * 23)).verdict == "collapsing"


def test_one_question_a_step_that_collapses():
    """48 steps are 6 episodes of 8 questions. The ends are 16 steps, in which 16 questions vote, and so 16 labels: 8
    different ones at first."""
    rows = run(vote_majority_ratio=ramp(0.3, 1.0, end=20), vote_distinct_labels=flat(1.0))
    labels = HEALTHY[:8]
    found = diagnose(rows, votes(labels, labels, *["A" * 8] * 4, prompts=1))
    assert found.verdict == "collapsing"
    assert (
        "of the first 16 labels 8 were different, and the most common one had 12.5%; of the last 16 it is 1"
        in found.text
    )
    # Means of steps 0 to 15: 0.3 + 0.035 * 7.5 = 0.5625.
    assert "from 0.562 to 1.000" in found.text
    assert diagnose(rows, votes(*[labels] * 6, prompts=1)).verdict == "converged"


def test_yes_and_no():
    """Of two answers a step of 8 questions has a quarter as many as questions, whether the model is well or not."""
    rows = run(vote_majority_ratio=ramp(0.6, 0.98, end=20), vote_distinct_labels=flat(0.25))
    healthy, noisy = "YNYYNNYN" * 2, "YNYNYNYN" * 2
    assert diagnose(rows, votes(noisy, *[healthy] * 23)).verdict == "converged"
    found = diagnose(rows, votes(noisy, *[healthy] * 11, *["Y" * 16] * 12))
    assert found.verdict == "collapsing" and "the most common one had 50.0%" in found.text
    assert "of the last 16 it is 1 and 100.0%" in found.text
    # Mostly no, rightly: what was clear is kept. The first votes were not clear, so that nobody knows.
    mostly = votes(noisy, *["N" * 15 + "Y"] * 23)
    for visit in mostly[:16]:
        visit["share"] = visit["runner_up"] = 0.5
    assert diagnose(rows, mostly).verdict == "converged"
    # All yes is a collapse even where no clear label was lost, as here, where all that were clear said yes.
    alone = votes(noisy, *["Y" * 16] * 23)
    for visit in alone[:16]:
        visit["share"] = visit["runner_up"] = 0.5
    assert diagnose(rows, alone).verdict == "collapsing"


GOLDEN = Path(__file__).parent / "golden" / "choice"


def golden(name: str) -> list[dict[str, Any]]:
    """The visits of seed 0 of a run of a quickstart: 80 steps of 8 questions (docs/science.md)."""
    keys = ("step", "question", "label", "share", "runner_up", "counts", "no_answer", "flipped")
    lines = (GOLDEN / f"{name}.jsonl").read_text().splitlines()[1:]
    return [dict(zip(keys, json.loads(line), strict=True)) for line in lines]


def parities(visits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same votes, with labels of two kinds."""
    found, before = [], {}
    for visit in visits:
        label = visit["label"] and ("odd" if visit["label"][-1] in "13579" else "even")
        flipped = None if visit["question"] not in before else before[visit["question"]] != label
        before[visit["question"]] = label
        found.append(visit | {"label": label, "flipped": flipped})
    return found


def metrics_of(visits: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The rows of their steps."""
    found: dict[int, list[float]] = {}
    for visit in visits:
        found.setdefault(visit["step"], []).append(visit["share"])
    return [{"step": step, "vote/majority_ratio": fmean(shares)} for step, shares in found.items()]


@pytest.mark.parametrize("labels", [list, parities], ids=["numbers", "odd and even"])
@pytest.mark.parametrize("prompts", [1, 2, 8])
@pytest.mark.parametrize("name", ["collapse", "learning"])
def test_runs_of_the_quickstarts(name: str, prompts: int, labels: Callable[[list], list]):
    """Golden: the verdict after a quarter, a half and all of the steps, however many questions these are of, also where
    the votes are on two answers."""
    visits = labels([visit | {"step": i // prompts} for i, visit in enumerate(golden(name))])
    said = []
    for share in (0.25, 0.5, 1.0):
        seen = visits[: int(share * len(visits))]
        said.append(diagnose(metrics_of(seen), seen).verdict)
    assert said == {"collapse": ["collapsing"] * 3, "learning": ["learning", "learning", "converged"]}[name]


def test_a_short_run_that_learns():
    """24 steps of 8 questions: the ends are 4 steps. From 0.2, 0.02 a step: 0.23 and 0.63."""
    rows = run(vote_majority_ratio=[0.2 + 0.02 * step for step in range(24)])
    found = diagnose(rows, votes(*[HEALTHY] * 12))
    assert found.verdict == "learning" and "from 0.230 to 0.630 (means of the first and the last 4 steps)" in found.text
    # Of one question each: 12 steps, half of them. 0.2 + 0.02 * 5.5 = 0.31, and 0.55.
    found = diagnose(rows, votes("ABC", *["ABC"] * 7, prompts=1))
    assert (
        found.verdict == "learning" and "from 0.310 to 0.550 (means of the first and the last 12 steps)" in found.text
    )


@pytest.mark.parametrize(
    ("signals", "words", "not_said"),
    [
        ({"vote_no_answer_rate": 0.6, "length_truncation_rate": 0.5}, "60.0% of the responses have no answer", "luck"),
        (
            {"vote_tie_rate": 0.4, "vote_flip_rate": 0.8},
            "40.0% of the votes were ties, and 80.0% of the labels",
            "have",
        ),
        ({"vote_flip_rate": 0.8}, "Labels are luck", "no answer"),
        ({"vote_zero_advantage_groups": 0.9}, "In 90.0% of the questions all rewards were equal", "luck"),
        (
            {"vote_zero_advantage_groups": 0.9, "judge_unlabelled_rate": 0.85},
            "85.0% of the questions had no label: their votes did not pass judge.gate_share",
            "all rewards were equal",
        ),
        ({"judge_unlabelled_rate": 0.5}, "The votes have winners", "had no label"),
        ({"vote_tie_rate": 0.03, "vote_flip_rate": 0.07}, "The votes have winners", "luck"),
        ({}, "The votes have winners", "entropy"),
        ({"update_entropy": 0.36}, "from 0.360 to 0.360 nats", "luck"),
    ],
)
def test_stuck_and_why(signals: dict[str, float], words: str, not_said: str):
    ratio = ramp(0.2, 0.19, start=4, end=44)
    found = diagnose(run(vote_majority_ratio=ratio, **{name: flat(x) for name, x in signals.items()}))
    assert found.verdict == "stuck" and "from 0.200 to 0.190" in found.text
    assert words in found.text and not_said not in found.text and "Agreement" not in found.text


def test_how_much_is_a_rise():
    """0.05, and more than two standard errors of the two ends."""
    for last, verdict in ((0.249, "stuck"), (0.251, "converged")):
        assert verdict_of(ramp(0.2, last, start=4, end=44)) == verdict
    noise = [0.1 * (-1) ** step for step in range(STEPS)]  # two standard errors are 2 * 0.1 * sqrt(2 / 4) = 0.141
    for last, verdict in ((0.33, "too short"), (0.35, "converged"), (0.2, "too short")):
        assert verdict_of([x + y for x, y in zip(ramp(0.2, last, start=4, end=44), noise, strict=True)]) == verdict
    for size, verdict in ((0.07, "stuck"), (0.072, "too short")):  # 0.099 and 0.102 of two standard errors
        assert verdict_of([0.2 + size * (-1) ** step for step in range(STEPS)]) == verdict


def test_what_chance_may_make_is_said_as_it_is():
    """The numbers above; and where all rewards are equal, so that nothing can be learned."""
    ratio = [x + 0.1 * (-1) ** i for i, x in enumerate(ramp(0.2, 0.33, start=4, end=44))]
    found = diagnose(run(vote_majority_ratio=ratio))
    assert found == Diagnosis(
        "too short",
        "The majority ratio went from 0.200 to 0.330 (means of the first and the last 4 steps), and chance may make a "
        "difference of 0.141: it takes more steps to tell whether it rises.",
    )
    found = diagnose(run(vote_majority_ratio=ratio, vote_zero_advantage_groups=flat(1.0)))
    assert found.verdict == "stuck" and "nothing to learn from" in found.text and "rose by less" not in found.text


def test_collapsing():
    fallen = ramp(0.2, 0.8, end=20)[:20] + ramp(0.8, 0.5, end=20, steps=28)
    signals = {"length_truncation_rate": ramp(0.0, 0.5, start=4, end=44), "update_kl": ramp(0.0, 9.0, start=4, end=44)}
    found = diagnose(run(vote_majority_ratio=fallen, **signals))
    assert found.verdict == "collapsing"
    assert "fell to 0.500 from 0.781 around step 21." in found.text
    assert "Responses cut off went from 0.000 to 0.500." in found.text and "The KL from the start went" in found.text
    assert "checkpoint" in found.text and "Agreement" not in found.text

    silent = run(vote_majority_ratio=ramp(0.2, 0.6), vote_no_answer_rate=ramp(0.01, 0.4, start=4, end=44))
    found = diagnose(silent)  # though those that still answer agree more
    assert found.verdict == "collapsing" and "rose from 1.0% to 40.0%" in found.text and "fell" not in found.text
    for last, verdict in ((0.65, "converged"), (0.63, "collapsing")):  # a fifth of 0.8 is 0.16
        ratio = ramp(0.2, 0.8, end=8)[:16] + ramp(0.8, last, end=1, steps=32)
        assert verdict_of(ratio) == verdict


def test_labels_that_flip_while_votes_are_clear_are_a_warning():
    rows = run(vote_majority_ratio=ramp(0.3, 0.95), vote_runner_up_margin=ramp(0.2, 0.9), vote_flip_rate=flat(0.03))
    assert "But 3.0% of the labels changed while votes were clear" in diagnose(rows).text
    for row in rows:
        row["vote/flip_rate"] *= row["vote/runner_up_margin"] < 0.5
    assert "But" not in diagnose(rows).text


def test_too_short_to_tell():
    ratio = ramp(0.2, 0.8, end=15, steps=16)
    assert diagnose(run(vote_majority_ratio=ratio)).verdict == "learning"
    found = diagnose(run(vote_majority_ratio=ratio[:15]))
    assert found == Diagnosis("too short", "Training steps so far: 15; it takes 16 to tell a trend.")
    assert diagnose([]).verdict == diagnose([{"step": 0}]).verdict == "too short"


def test_a_short_run_is_not_said_to_stay_where_it_is():
    """With 23 steps; with 24 it is."""
    courses = {"converged": ramp(0.2, 0.8, end=4), "stuck": flat(0.3)}
    for verdict, course in courses.items():
        assert verdict_of(course[:24]) == verdict
    found = diagnose(run(vote_majority_ratio=courses["converged"][:23]))
    assert found.verdict == "learning" and "and it takes 24 steps to tell whether it stays there." in found.text
    for course in (courses["stuck"], flat(0.95)):
        found = diagnose(run(vote_majority_ratio=course[:23]))
        assert found.verdict == "too short" and found.text.endswith("it takes 24 steps to tell whether it stays there.")
    assert verdict_of(flat(0.95)[:24]) == "converged"


def test_clear_labels_that_become_others_are_a_collapse():
    """Of 16 clear labels 8 are others in the last episode, and as different as before; 7 are no collapse. Of 7 clear
    labels nothing is said."""
    rows = run(vote_majority_ratio=ramp(0.3, 0.9, end=20))
    found = diagnose(rows, votes(*[HEALTHY] * 20, *["abcdefgh" + HEALTHY[8:]] * 4))
    assert found.verdict == "collapsing" and "Of 16 labels that were clear, 8 are others now" in found.text
    assert diagnose(rows, votes(*[HEALTHY] * 20, *["abcdefg" + HEALTHY[7:]] * 4)).verdict == "converged"
    unclear = votes(*[HEALTHY] * 20, *["abcdefg" + HEALTHY[7:]] * 4)
    for visit in unclear:
        if visit["question"] >= 7:
            visit["share"] = visit["runner_up"] = 0.4
    assert diagnose(rows, unclear).verdict == "converged"


def test_truths_are_never_read():
    """Semantics: the accuracies, whatever they say, change nothing."""
    rows = run(vote_majority_ratio=ramp(0.2, 0.68), vote_flip_rate=flat(0.1))
    for accuracy in (0.0, 1.0):
        measured = {"audit/label_accuracy": accuracy, "eval/data/avg@16": accuracy, "eval/data/majority_ratio": 0.1}
        assert diagnose([row | measured for row in rows]) == diagnose(rows)


def test_what_is_missing_or_no_number_is_passed_over():
    """Semantics: null for NaN, texts, lists, numbers that no float holds, rows without a step or a vote."""
    rows = run(vote_majority_ratio=ramp(0.2, 0.68), vote_vote_entropy=ramp(3.0, 0.6), update_kl=flat(0.1))
    clean = diagnose(rows)
    bad = [None, math.nan, math.inf, "0.5", True, [0.5], {"a": 1}, 10**400]
    strange = [{"step": 3, "vote/majority_ratio": x, "vote/vote_entropy": 1.0} for x in bad]
    strange += [{"vote/majority_ratio": 0.9}, {"step": None, "vote/majority_ratio": 0.9}, {}, {"step": 48}]
    assert diagnose([*rows[:3], *strange, *rows[3:], {"step": STEPS, "eval/data/majority_ratio": 0.7}]) == clean
    for name in ("vote/vote_entropy", "update/kl"):  # each of them now and then, then never
        holes = [row | {name: bad[i % len(bad)]} if i % 2 else row for i, row in enumerate(rows)]
        assert diagnose(holes).verdict == "learning"
        assert diagnose([row | {name: None} for row in rows]).verdict == "learning"


def test_steps_may_begin_late_and_have_gaps():
    """Invariance: of what is left of a damaged file the steps count as they are numbered."""
    rows = run(vote_majority_ratio=ramp(0.31, 0.93, end=10))
    moved = [row | {"step": 1000 + 2 * row["step"]} for row in rows]
    assert diagnose(moved).verdict == "converged" and "since step 1020" in diagnose(moved).text
