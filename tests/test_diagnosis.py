"""Hand-worked: series whose course is known get the verdict and the numbers that they should. Semantics: no truth."""

import math

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
    # 0.012 a step: the ends are means of steps 0 to 3 and 44 to 47; that of 42 to 45, 0.722, is the first within 0.03.
    assert "from 0.218 to 0.746 (means of the first and the last 4 steps)" in found.text
    assert "within 0.03 of that only at step 44: more episodes may teach more" in found.text
    assert "from 2.91 to 0.27 nats" in found.text and "Agreement is not truth" in found.text


def test_converged():
    found = diagnose(run(vote_majority_ratio=ramp(0.31, 0.93, end=10), vote_flip_rate=ramp(0.4, 0.0, end=10)))
    assert found.verdict == "converged"
    assert "to 0.930" in found.text and "within 0.03 of that since step 11" in found.text
    assert "34.0% at first, 0.0% at last" in found.text
    assert (
        verdict_of(ramp(0.31, 0.93, end=30)) == "learning"
    )  # it was there in the second half only, when the learning rate is low
    assert verdict_of(flat(0.95)) == "converged"  # nothing was left to learn


def test_agreement_on_one_answer_to_everything_is_a_collapse():
    ratio = ramp(0.3, 1.0, end=20)
    found = diagnose(run(vote_majority_ratio=ratio, vote_distinct_labels=ramp(1.0, 0.125, end=20)))
    assert found.verdict == "collapsing"
    assert "at first 93.4% of the labels of a step were different, now 12.5%" in found.text
    assert "from 0.352 to 1.000" in found.text
    few = ramp(0.5, 0.26, end=20)  # four letters to choose from: a step never had many labels
    assert diagnose(run(vote_majority_ratio=ratio, vote_distinct_labels=few)).verdict == "converged"


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
    for last, verdict in ((0.33, "too short"), (0.35, "converged")):
        assert verdict_of([x + y for x, y in zip(ramp(0.2, last, start=4, end=44), noise, strict=True)]) == verdict


def test_a_rise_that_chance_may_make_is_not_called_none():
    """The numbers above; and where all rewards are equal, so that nothing can be learned."""
    ratio = [x + 0.1 * (-1) ** i for i, x in enumerate(ramp(0.2, 0.33, start=4, end=44))]
    found = diagnose(run(vote_majority_ratio=ratio))
    assert found == Diagnosis(
        "too short",
        "The majority ratio went from 0.200 to 0.330 (means of the first and the last 4 steps), and chance may make a "
        "difference of 0.141: it takes more steps to tell whether it rises.",
    )
    found = diagnose(run(vote_majority_ratio=ratio, vote_zero_advantage_groups=flat(1.0)))
    assert found.verdict == "stuck" and "nothing to learn from" in found.text and "did not rise" not in found.text


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
    assert diagnose(moved).verdict == "converged" and "since step 1022" in diagnose(moved).text
