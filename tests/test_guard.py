"""Hand-worked: how TTRL-Guard trusts a label by its history."""

import json

import numpy as np
import pytest

from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.guard import at_risk, trust
from ttrl_jax.reward.history import History, Visit
from ttrl_jax.reward.judge import Draw, Evidence, Judge, Verdict
from ttrl_jax.reward.vote import Ballot, vote


def ballot(**counts: int) -> Ballot:
    """As many votes for each answer; `none` is no answer."""
    return vote([None if name == "none" else Answer(name) for name, count in counts.items() for _ in range(count)])


def past(labels: str, shares: list[float], *, question: int = 0) -> tuple[Visit, ...]:
    """The visits of a question, one at each step."""
    return tuple(
        Visit(
            step=step,
            question=question,
            label=label,
            share=share,
            runner_up=0.0,
            counts=(1,),
            no_answer=0,
            length=1.0,
            flipped=labels[step - 1] != label if step else None,
        )
        for step, (label, share) in enumerate(zip(labels, shares, strict=True))
    )


def judged(history: History, *ballots: Ballot, seed: int = 0, step: int = 9, ids=None) -> Verdict:
    nothing = np.ones((len(ballots), len(ballots[0].classes)))
    ids = range(len(ballots)) if ids is None else ids
    return Judge(rule="guard")(ballots, Evidence(nothing, nothing, None), history, Draw(seed, step, ids))


@pytest.mark.parametrize(
    ("labels", "shares", "scale", "risk"),
    [
        ("a", [0.9], 1.0, False),  # a first visit
        ("ab", [0.9, 0.5], 0.5, False),  # it flips
        ("ab", [0.9, 0.6], 0.5, False),  # 0.6 is not above 0.6
        ("ab", [0.2, 0.7], 0.35, False),  # it flips, and is sure: 0.5 x 0.7
        ("abb", [0.9, 0.9, 0.9], 1.0, False),  # it flipped before
        ("aaaa", [0.9] * 4, 1.0, False),  # too few visits
        ("aaaaa", [0.9] * 5, 0.85, False),  # the fifth; it never flipped
        ("aaaaa", [0.6] * 5, 1.0, False),  # but was not so sure
        ("aaaaa", [0.2, 0.4, 0.8, 0.8, 0.9], 0.85, False),  # a mean of 0.62
        ("a" * 9, [0.9] * 9, 0.85, False),  # the fifth time
        ("a" * 10, [0.9] * 10, 1.0, False),  # no sixth time
        ("a" * 10, [0.5] * 5 + [0.9] * 5, 0.85, False),  # means 0.5, 0.58, 0.66 ...: the fourth time
        ("abbbb", [0.8] * 5, 1.0, True),  # it flipped once, and is sure since
        ("abbbb", [0.7] * 5, 1.0, False),  # 0.7 is not above 0.7
        ("aaaab", [0.8] * 5, 0.35, True),  # it flips now, which counts
        ("abbb", [0.9] * 4, 1.0, False),  # too few visits
        ("ab" + "b" * 8, [0.9] * 5 + [0.6] * 5, 1.0, False),  # sure once, not over the last 5
    ],
)
def test_scale_and_risk(labels: str, shares: list[float], scale: float, risk: bool) -> None:
    visits = past(labels, shares)
    assert trust(visits) == pytest.approx(scale) and at_risk(visits) == risk


def test_the_visit_of_now_is_the_votes() -> None:
    """Question 7 had the label a; question 3 is new; question 4 had none, and has none."""
    history = History(past("a", [0.9], question=7) + (*past("a", [0.9], question=5),))
    history = history.add([Visit(0, 4, None, 0.0, 0.0, (), 4, 1.0, None)])
    verdict = judged(history, ballot(b=3, a=1), ballot(b=4), ballot(none=4), ballot(a=4), ids=[7, 3, 4, 5])
    assert verdict.scale.tolist() == pytest.approx([0.35, 1, 1, 1])  # it flips, with a ratio of 0.75
    assert verdict.rewards.tolist() == [[1, 1, 1, 0], [1] * 4, [0] * 4, [1] * 4]
    assert verdict.labels == verdict.winners == [0, 0, None, 0] and not verdict.selective
    assert verdict.found["scale"] == pytest.approx(3.35 / 4) and verdict.found["bonus_rate"] == 0.25


def test_what_a_flip_adds() -> None:
    """Of 16 votes 6 a, 5 b, 4 c, 1 d: a is new, b and c have a quarter of the votes; they share 0.3 as 5 to 4. Without
    an answer it is a twentieth of their mean, 0.3 / 2."""
    flip = History(past("b", [0.9]))
    [bonus] = judged(flip, ballot(a=6, b=5, c=4, d=1)).bonus
    np.testing.assert_allclose(bonus, [0] * 6 + [0.3 * 5 / 9] * 5 + [0.3 * 4 / 9] * 4 + [0], rtol=1e-6)
    [bonus] = judged(flip, ballot(a=6, b=5, c=3, none=2)).bonus
    np.testing.assert_allclose(bonus, [0] * 6 + [0.3] * 5 + [0] * 3 + [0.05 * 0.3] * 2, rtol=1e-6)
    for history, votes in (
        (History(past("a", [0.9])), ballot(a=6, b=5, c=5)),  # no flip
        (History(past("ba", [0.9, 0.9])), ballot(a=6, b=5, c=5)),  # it was before
        (flip, ballot(a=8, b=3, c=3, none=2)),  # no other answer has a quarter
        (flip, ballot(none=16)),  # lost its label: nobody answers
        (History(), ballot(a=6, b=5, c=5)),
    ):
        assert not judged(history, votes).bonus.any()


def test_a_run_that_goes_on_trusts_as_it_did() -> None:
    """Invariance: all that is remembered is in the history, which a checkpoint keeps as JSON."""
    history = History(
        past("aaaaa", [0.9] * 5) + past("abbbb", [0.9] * 5, question=1) + past("abbaa", [0.9] * 5, question=2)
    )
    again = History.of(json.loads(json.dumps(history.rows())))
    for seed in range(4):
        now, later = (
            judged(each, ballot(b=9, a=7), ballot(b=16), ballot(b=10, c=6), seed=seed) for each in (history, again)
        )
        np.testing.assert_array_equal(now.scale, later.scale)
        np.testing.assert_array_equal(now.bonus, later.bonus)
        assert now.found == later.found and now.bonus.any()


def test_few_votes_have_a_quarter_of_one() -> None:
    assert judged(History(past("b", [0.9])), ballot(a=2, b=1)).bonus[0].tolist() == pytest.approx([0, 0, 0.3])


RISKY = [past("abbbb", [0.9] * 5, question=i) for i in range(16)]


def risky(count: int, *, safe: int = 0, **draw: int) -> Verdict:
    """A verdict on questions at risk, with safe ones behind them."""
    history = History(tuple(visit for visits in RISKY[:count] for visit in visits))
    return judged(history, *[ballot(b=4)] * (count + safe), **draw)


def test_questions_at_risk_are_skipped_by_chance_and_a_quarter_at_most() -> None:
    """Each with a chance of 0.7; of one to seven questions one at most, of eight two."""
    alone = [risky(1, seed=seed).scale[0] == 0 for seed in range(400)]
    assert 0.63 < np.mean(alone) < 0.77  # three standard deviations of 400 draws: 0.07
    for count, safe, most in ((3, 0, 1), (7, 0, 1), (8, 0, 2), (4, 12, 4), (16, 0, 4)):
        skipped = [(risky(count, safe=safe, seed=seed).scale == 0) for seed in range(60)]
        assert max(each.sum() for each in skipped) == most, count
        assert not any(each[count:].any() for each in skipped), "a safe one is never skipped"
    found = risky(4, safe=12).found
    assert found["at_risk_rate"] == 0.25 and found["skipped_rate"] == (risky(4, safe=12).scale == 0).mean()


def test_who_is_skipped_depends_on_seed_step_and_question_alone() -> None:
    draws = {}
    for seed in range(4):
        for step in range(9, 13):
            draws[seed, step] = [risky(1, seed=seed, step=step).scale[0] == 0] + [
                judged(History(visits), ballot(b=4), seed=seed, step=step, ids=[i + 1]).scale[0] == 0
                for i, visits in enumerate(RISKY[1:8])
            ]
    assert len({tuple(each) for each in draws.values()}) > 10
    first = draws[2, 10].index(True)
    together = risky(8, seed=2, step=10).scale == 0
    assert together.nonzero()[0].tolist() == [i for i, skip in enumerate(draws[2, 10]) if skip][:2] and together[first]
