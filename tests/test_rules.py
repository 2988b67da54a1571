"""Hand-worked: what each rule of `judge.rule` gives to votes. tests/test_guard.py has the one that remembers."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from configs import default
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History
from ttrl_jax.reward.judge import RULES, Draw, Evidence, Judge, Settings, Verdict
from ttrl_jax.reward.rules import chance
from ttrl_jax.reward.vote import Ballot, vote

ROOT = Path(__file__).parent.parent


def ballot(*texts: str | None) -> Ballot:
    return vote([None if text is None else Answer(text) for text in texts])


def votes(**counts: int) -> Ballot:
    """As many votes for each answer, in this order; `none` is no answer: a=3, none=1."""
    return ballot(*(None if name == "none" else name for name, count in counts.items() for _ in range(count)))


def judged(rule: str, *ballots: Ballot, entropies=None, logps=None, ties: str = "first", **settings: float) -> Verdict:
    shape = (len(ballots), len(ballots[0].classes))
    evidence = Evidence(
        lengths=np.ones(shape, np.int32),
        mean_logps=np.zeros(shape) if logps is None else np.array(logps, np.float64),
        in_format=None,
        entropies=None if entropies is None else np.array(entropies, np.float32),
    )
    judge = Judge(rule=rule, ties=ties, settings=Settings(**settings))
    return judge(ballots, evidence, History(), Draw(0, 0, range(len(ballots))))


def test_the_settings_are_the_keys_of_the_config() -> None:
    keys = default.get_config().judge.to_dict()
    assert keys.pop("rule") == "majority" and keys == dataclasses.asdict(Settings())


def test_every_rule_is_explained() -> None:
    """Semantics: where a user reads of them."""
    page = (ROOT / "docs" / "algorithms.md").read_text().split("## Judges")[1]
    said = (ROOT / "configs" / "default.py").read_text()
    for rule in RULES:
        assert f"| `{rule}` " in page and f"{rule}:" in said, rule


def test_every_rule_judges_votes_that_stopped_as_if_no_more_were_allowed() -> None:
    """Invariance: beside a ballot of six votes one of four, whose places five and six say nothing."""
    six, four = votes(a=3, b=1, c=1, none=1), votes(a=2, b=1, none=1)
    logps, entropies = (
        [[-1.0, -2, -3, -0.5, -4, -5], [-3.0, -2, -1, -4, 0, 0]],
        [[1.0, 1, 1, 3, 0, 2], [1.0, 2, 3, 4, 0, 0]],
    )
    way = {"gate_share": 0.2, "gate_margin": 0.1, "negative_share": 0.3, "no_answer_reward": -1.0}
    for rule in RULES:
        both = judged(rule, six, four, logps=logps, entropies=entropies, **way)
        alone = judged(rule, four, logps=[logps[1][:4]], entropies=[entropies[1][:4]], **way)
        assert both.labels[1] == alone.labels[0] and both.scale[1] == alone.scale[0], rule
        np.testing.assert_array_equal(both.rewards[1], [*alone.rewards[0], 0, 0], rule)
        np.testing.assert_array_equal(both.bonus[1], [*alone.bonus[0], 0, 0], rule)


def test_every_rule_leaves_the_winners_and_the_types() -> None:
    ballots = [votes(a=3, b=1), votes(a=2, b=2), votes(none=4), votes(a=1, none=3)]
    for rule in RULES:
        verdict = judged(rule, *ballots, entropies=np.ones((4, 4)))
        assert verdict.winners == [0, 0, None, 0], rule
        found = verdict.rewards, verdict.scale, verdict.bonus
        assert [each.shape for each in found] == [(4, 4), (4,), (4, 4)] and not verdict.bonus.any(), rule
        assert {each.dtype for each in found} == {np.dtype(np.float32)}, rule
        assert not verdict.rewards[2].any() and not verdict.rewards[3, 1:].any(), rule  # silence earns nothing
        assert verdict.take(np.array([[1, 3]] * 4)).found == verdict.found
    for rule in ("majority", "vote_share", "answered"):
        verdict = judged(rule, *ballots)
        assert not verdict.selective and verdict.found == {} and verdict.scale.tolist() == [1] * 4


# ---------------------------------------------------------------------- gate, negative, scrl


@pytest.mark.parametrize(
    ("counts", "passes"),
    [
        ({"a": 10, "b": 6, "c": 4}, True),  # a share of 0.5, a margin of 0.2
        ({"a": 9, "b": 2, "c": 2, "d": 7}, False),  # 0.45
        ({"a": 11, "b": 8, "c": 1}, False),  # 0.55, and no more than 0.15 ahead
        ({"a": 12, "b": 8}, True),  # 0.2 ahead
        ({"a": 10, "none": 10}, True),  # silence is no runner-up, but it counts in the share
        ({"a": 9, "none": 11}, False),
        ({"a": 20}, True),
        ({"none": 20}, False),
    ],
)
def test_the_gate(counts: dict[str, int], passes: bool) -> None:
    verdict = judged("gate", votes(**counts))
    assert verdict.labels == [0 if passes else None] and verdict.scale.tolist() == [passes]
    assert verdict.rewards[0].tolist() == [passes and name == "a" for name, n in counts.items() for _ in range(n)]
    assert verdict.found == {"unlabelled_rate": 1.0 - passes} and verdict.selective


def test_the_gate_by_its_keys() -> None:
    """Of 10 votes 4, 3 and 3: a share of 0.4, 0.1 ahead."""
    ballots = [votes(a=4, b=3, c=3), votes(a=10)]
    for keys, labels in (
        ({}, [None, 0]),
        ({"gate_share": 0.4}, [None, 0]),
        ({"gate_share": 0.4, "gate_margin": 0.05}, [0, 0]),
        ({"gate_share": 0.41, "gate_margin": 0.05}, [None, 0]),
        ({"gate_margin": 1.0}, [None, 0]),  # an answer that is alone needs no margin
    ):
        verdict = judged("gate", *ballots, **keys)
        assert verdict.labels == labels and verdict.found["unlabelled_rate"] == labels.count(None) / 2, keys


def test_a_drawn_tie_does_not_pass_the_gate() -> None:
    assert judged("gate", *[votes(a=2, b=2)] * 20, ties="random").labels == [None] * 20


ENTROPIES = [0.5] * 12 + [0.9, 1.5] + [0.6, 0.7] + [2.0] + [0.1] + [3.0, 3.0]
"""Of 12 a, 2 b, 2 c, 1 d, 1 e and 2 without an answer. Their mean is (6 + 2.4 + 1.3 + 2 + 0.1 + 6) / 20 = 0.89. Those
of b are 1.2, of c 0.65, of d 2, of e 0.1."""
SCATTERED = votes(a=12, b=2, c=2, d=1, e=1, none=2)


def test_rare_and_uncertain_answers_are_pushed_away() -> None:
    verdict = judged("negative", SCATTERED, entropies=[ENTROPIES])
    want = [0] * 12 + [-1, -1] + [0, 0] + [-1] + [0] + [0, 0]
    assert verdict.rewards[0].tolist() == want and verdict.scale.tolist() == [1]
    assert verdict.labels == [None] and verdict.selective and verdict.found == {"negative_rate": 3 / 20}
    few = judged("negative", SCATTERED, entropies=[ENTROPIES], negative_share=0.1)  # 2 of 20 are not less
    assert few.rewards[0].tolist() == [0] * 16 + [-1] + [0] * 3


def test_scrl_is_the_gate_and_what_is_pushed_away() -> None:
    """A question without a label still teaches what its answer is not, also that of its winner if it is rare."""
    unclear = votes(a=8, b=8, c=1, d=1, none=2)
    entropies = [ENTROPIES, [1.0] * 16 + [1.0, 0.9] + [1.0, 1.1]]  # the mean is (16 + 1.9 + 2.1) / 20 = 1
    verdict = judged("scrl", SCATTERED, unclear, entropies=entropies)
    assert verdict.rewards[0].tolist() == [1] * 12 + [-1, -1] + [0, 0] + [-1] + [0] * 3
    assert verdict.rewards[1].tolist() == [0] * 16 + [-1] + [0] * 3
    assert verdict.labels == [0, None] and verdict.scale.tolist() == [1, 1] and verdict.selective
    assert verdict.found == {"unlabelled_rate": 0.5, "negative_rate": 4 / 40}
    each = ballot(*map(str, range(20)))  # 20 answers: the first won, with a share of 0.05
    assert judged("scrl", each, entropies=[[1.0] * 20]).rewards.tolist() == [[-1] * 20]
    sure = judged("scrl", votes(a=20), entropies=[[1.0] * 20], gate_share=0.0, negative_share=1.0)
    assert sure.rewards.tolist() == [[1] * 20]  # what is the label is not pushed away, whatever the shares


def test_rules_that_push_ask_for_entropies() -> None:
    assert [rule for rule in RULES if Judge(rule=rule).asks_entropies] == ["negative", "scrl"]


def test_silence_may_cost_with_every_rule() -> None:
    """As published, SCRL gives -1 to a response without an answer."""
    for rule in RULES:
        plain = judged(rule, SCATTERED, entropies=[ENTROPIES]).rewards[0].tolist()
        for cost in (-1.0, -0.25):
            found = judged(rule, SCATTERED, entropies=[ENTROPIES], no_answer_reward=cost).rewards
            assert found[0].tolist() == plain[:18] + [cost, cost] and found.dtype == np.float32, rule


# ---------------------------------------------------------------------- best_of, soft


def test_the_likeliest_response_has_the_label() -> None:
    """Of those with an answer: the first question's likeliest has none, the last has no answer at all."""
    ballots = [ballot("1", "2", "1.0", None), ballot("3", "4", "4", "5"), ballot(None, None, None, None)]
    logps = [[-3.0, -2.0, -2.5, -1.0], [-2.0, -4.0, -3.0, -2.0], [-1.0] * 4]
    verdict = judged("best_of", *ballots, logps=logps)
    assert verdict.labels == [1, 0, None] and verdict.winners == [0, 1, None]
    assert verdict.rewards.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0] * 4]
    assert verdict.found == {"agrees_with_vote": 1 / 3} and not verdict.selective


@pytest.mark.parametrize(
    ("counts", "odds"),
    [
        ({"a": 8, "b": 8}, 1.0),  # half of the votes each: one half
        ({"a": 12, "b": 4}, 12.5 / 4.5),  # two answers that all votes are for: 12.5 / 17, about the share
        ({"a": 8, "b": 4, "none": 4}, 8.5 / math.sqrt(8.5 * 4.5)),
        ({"a": 8, "none": 8}, 8.5 / math.sqrt(8.5 * 0.5)),  # against silence alone
        ({"a": 16}, 16.5 / 0.5),
        ({"a": 4}, 4.5 / 0.5),  # as unanimous, by fewer
        ({"a": 1, "b": 1, "c": 1, "d": 1}, 1.5 / math.sqrt(3.5 * 1.5)),
    ],
)
def test_how_likely_a_label_is(counts: dict[str, int], odds: float) -> None:
    [given] = judged("soft", votes(**counts)).scale
    assert given == pytest.approx(odds / (1 + odds), rel=1e-6)
    steep = judged("soft", votes(**counts), soft_slope=2.0, soft_offset=-1.0)
    odds = odds**2 / math.e
    assert steep.scale[0] == pytest.approx(odds / (1 + odds), rel=1e-6)
    assert steep.found == {"scale": pytest.approx(odds / (1 + odds), rel=1e-6)}


def test_a_soft_label_is_the_majoritys() -> None:
    ballots = [votes(a=3, b=1), votes(none=4)]
    verdict = judged("soft", *ballots)
    assert verdict.labels == [0, None] and verdict.rewards.tolist() == [[1, 1, 1, 0], [0] * 4]
    assert verdict.scale[1] == 0


def test_clearer_votes_count_more() -> None:
    """Semantics: with the share of the label, with the margin at one share, and never outside of 0 to 1."""
    numbers = Settings()
    shares = [chance(votes(a=k, b=1, **{f"c{i}": 1 for i in range(15 - k)}), 0, numbers) for k in range(1, 16)]
    assert shares == sorted(set(shares)) and 0 < shares[0] and shares[-1] < 1
    margins = [chance(votes(a=6, b=6 - k, **{f"c{i}": 1 for i in range(k)}), 0, numbers) for k in range(5)]
    assert margins == sorted(set(margins))
