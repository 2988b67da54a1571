"""Metrics against the truth, worked out by hand, and every gold answer of the paper's data files."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ttrl_jax.learn.credit import group_normalised
from ttrl_jax.reward.audit import audit, truth_classes
from ttrl_jax.reward.equivalence import classes
from ttrl_jax.reward.extract import Answer, extract
from ttrl_jax.reward.score import score, select, vote_share, with_format
from ttrl_jax.reward.vote import Ballot, vote

FAQ = (Path(__file__).parent.parent / "docs" / "faq.md").read_text()


def ballot(*texts: str | None) -> Ballot:
    return vote([None if text is None else Answer(text) for text in texts])


def audit_vote(ballots: list[Ballot], truths: list[str], *, samples: int) -> dict[str, float]:
    labels = [b.label for b in ballots]
    rewards = score(ballots, labels)
    return audit(ballots, labels, rewards, select(rewards, samples=samples), truths)


def test_a_wrong_label_and_its_right_rewards_as_the_faq_has_them() -> None:
    """docs/faq.md: 8 answers, of which none is the truth; and rewards of +1 and -1 have the advantages of 1 and 0."""
    found = audit_vote([ballot(*"11222456")], ["3"], samples=8)
    assert found["label_accuracy"] == 0 and found["reward_accuracy"] == found["hit_ratio"] == 0.625
    rewards = np.float32([[0, 0, 1, 1, 1, 0, 0, 0]])
    for each in (rewards, 2 * rewards - 1):
        advantages = group_normalised(each)
        assert advantages == pytest.approx(np.where(rewards == 1, 1.208, -0.725), abs=1e-3)
    assert "62.5 %" in FAQ and "| +1.208 | -0.725 |" in FAQ


def test_a_rule_that_chooses_is_measured_by_the_labels_that_it_gives() -> None:
    """The first label is right, as are 2 of 4 responses; the second question has none, though 3 of 4 are right."""
    ballots, truths = [ballot("7", "7", "3", "4"), ballot("5", "5", "5", "6")], ["7", "5"]
    chosen = np.tile(np.arange(3, dtype=np.int32), (2, 1))

    def measured(labels: list[int | None], *, selective: bool) -> dict[str, float]:
        return audit(ballots, labels, score(ballots, labels), chosen, truths, selective=selective)

    whole, some = measured([0, 0], selective=True), measured([0, None], selective=True)
    names = ("label_accuracy", "reward_accuracy", "votes_reward_accuracy")
    assert whole == measured([0, 0], selective=False) and [some[name] for name in names] == [1, 1, 1]
    unchosen = measured([0, None], selective=False)  # of 6 chosen and 8 votes, all 3 that are right have no reward
    assert [unchosen[name] for name in names] == pytest.approx([1 / 2, 3 / 6, 5 / 8])
    none = measured([None, None], selective=True)
    assert none.keys() == whole.keys() - set(names) and none["ground_truth_reward"] == whole["ground_truth_reward"]
    assert measured([None, None], selective=False)["label_accuracy"] == 0


def test_the_hit_ratio_is_of_wrong_labels() -> None:
    """Where each label is right, or there is no label at all, there is none."""
    assert "hit_ratio" not in audit_vote([ballot(*"3345")], ["3"], samples=4)
    assert "hit_ratio" not in audit_vote([ballot(None, None)], ["3"], samples=2)


def test_truth_classes() -> None:
    b = ballot("7", None, r"\frac{3}{4}", "x", "0.75")
    truths = ["007", "0.750", "x", "4", "3", "", r"\,"]
    # \frac{3}{4} is an answer already: neither it nor the truth is read for a last number again.
    assert truth_classes([b] * len(truths), truths) == [0, 1, 2, None, None, None, None]


def test_truth_class_where_nobody_answered() -> None:
    assert truth_classes([ballot(None, None), ballot("5")], ["5", "5"]) == [None, 0]


def test_every_ballot_needs_its_truth() -> None:
    with pytest.raises(ValueError):
        truth_classes([ballot("5"), ballot("5")], ["5"])


def test_metrics_by_hand() -> None:
    #                  votes                           truth     reward      correct
    ballots = [
        ballot("7", "7", "3", None),  # 007       1 1 0 0     1 1 0 0
        ballot("5", "6", "6", "6"),  #  5.0       0 1 1 1     1 0 0 0
        ballot("1", "2", "2", "2"),  #  9         0 1 1 1     0 0 0 0
        ballot("8", "8", "4", "3"),  #  8         1 1 0 0     1 1 0 0
    ]
    labels = [b.label for b in ballots]
    rewards = score(ballots, labels)
    chosen = np.array([[0, 2], [1, 2], [0, 1], [2, 3]], np.int32)
    metrics = audit(ballots, labels, rewards, chosen, ["007", "5.0", "9", "8"])
    # Of the 8 chosen, 4 have a reward, 1 is correct, 1 is both:
    covariance, variance_reward, variance_correct = 1 / 8 - 4 / 8 * 1 / 8, 1 / 4, 1 / 8 * 7 / 8
    assert metrics == pytest.approx(
        {
            "label_accuracy": 2 / 4,
            "reward_accuracy": (2 + 0 + 1 + 2) / 8,
            "hit_ratio": (0 + 1) / 4,  # of the second and the third
            "ground_truth_reward": (1 + 0 + 0 + 0) / 8,
            "pass@2": 1 / 4,
            "votes_reward_accuracy": (4 + 0 + 1 + 4) / 16,
            "votes_ground_truth_reward": (2 + 1 + 0 + 2) / 16,
            "pass@4": 3 / 4,
            "point_biserial_correlation": covariance / math.sqrt(variance_reward * variance_correct),
        }
    )
    assert all(type(value) is float for value in metrics.values())


def test_the_labels_given_are_audited_not_the_votes() -> None:
    b = ballot("6", "6", "5")
    rewards = score([b], [1])
    metrics = audit([b], [1], rewards, select(rewards, samples=3), ["5"])
    assert metrics["label_accuracy"] == metrics["reward_accuracy"] == 1.0
    assert metrics["ground_truth_reward"] == pytest.approx(1 / 3)
    rewards = score([b], [0])
    assert audit([b], [0], rewards, select(rewards, samples=3), ["5"])["label_accuracy"] == 0.0


def test_the_accuracy_of_rewards_is_that_of_the_agreement_whatever_they_are() -> None:
    """Hand-worked: with vote shares and a format, rewards are no longer 0 or 1; the correlation takes them whole."""
    b = ballot("5", "5", "6", None)
    rewards = with_format(vote_share([b]), np.array([[True, False, False, True]]), weight=0.5)
    assert rewards.tolist() == [[1.0, 0.5, 0.25, 0.5]]
    chosen = select(rewards, samples=4)
    metrics = audit([b], [0], rewards, chosen, ["5"])
    assert metrics["label_accuracy"] == metrics["reward_accuracy"] == metrics["votes_reward_accuracy"] == 1.0
    assert metrics["point_biserial_correlation"] == pytest.approx(np.corrcoef([1, 0.5, 0.25, 0.5], [1, 1, 0, 0])[0, 1])
    assert audit([b], [0], rewards, chosen, ["6"])["reward_accuracy"] == 1 / 4


def test_a_lucky_hit_has_a_right_reward_but_no_right_label() -> None:
    """A wrong label still gives most scattered wrong answers the 0 that they deserve."""
    metrics = audit_vote([ballot("6", "6", "1", "2", "3", "4")], ["5"], samples=6)
    assert metrics["label_accuracy"] == 0.0
    assert metrics["reward_accuracy"] == pytest.approx(4 / 6)


def test_no_label_and_no_truth_are_not_a_match() -> None:
    metrics = audit_vote([ballot(None, None)], ["5"], samples=1)
    assert metrics == {
        "label_accuracy": 0.0,
        "reward_accuracy": 1.0,
        "ground_truth_reward": 0.0,
        "pass@1": 0.0,
        "votes_reward_accuracy": 1.0,
        "votes_ground_truth_reward": 0.0,
        "pass@2": 0.0,
        "point_biserial_correlation": 0.0,
    }


@pytest.mark.parametrize(
    ("votes", "truth", "samples", "expected"),
    [
        (["5", "5", "6"], "5", 3, 1.0),
        (["6", "6", "5"], "5", 3, -1.0),
        (["5", "5", "5", "6", "7"], "6", 5, -math.sqrt(3 / 8)),  # (0 - 3/5 * 1/5) / sqrt(6/25 * 4/25)
        (["5", "5", "5"], "5", 3, 0.0),  # undefined: every reward is 1, every sample correct
        (["5", "6", "5"], "9", 3, 0.0),  # undefined: no sample is correct
        (["5", "5", "6"], "5", 2, 0.0),  # undefined among the chosen, though not among all votes
    ],
)
def test_point_biserial_correlation(votes: list[str], truth: str, samples: int, expected: float) -> None:
    got = audit_vote([ballot(*votes)], [truth], samples=samples)["point_biserial_correlation"]
    assert got == (0.0 if expected == 0.0 else pytest.approx(expected))


def test_correlation_is_undefined_where_all_rewards_are_equal_but_correctness_is_not() -> None:
    b = ballot("5", "6")
    rewards = np.ones((1, 2), np.float32)
    assert audit([b], [0], rewards, select(rewards, samples=2), ["5"])["point_biserial_correlation"] == 0.0


def test_correlation_of_many_against_numpy() -> None:
    rng = np.random.default_rng(0)
    ballots = [ballot(*map(str, rng.integers(4, size=16))) for _ in range(8)]
    truths = [str(t) for t in rng.integers(4, size=8)]
    correct = [
        [a is not None and b.answers[a].text == t for a in b.classes] for b, t in zip(ballots, truths, strict=True)
    ]
    rewards = score(ballots, [b.label for b in ballots])
    expected = np.corrcoef(rewards[:, :6].ravel(), np.array(correct)[:, :6].ravel())[0, 1]
    assert abs(expected) > 0.05
    assert audit_vote(ballots, truths, samples=6)["point_biserial_correlation"] == pytest.approx(expected)


def gold_answers(folder: Path, name: str) -> list[str]:
    return [row["answer"] for row in json.loads((folder / name).read_text())]


@pytest.mark.parametrize(("name", "number"), [("AIME-TTT.json", 30), ("MATH-TTT.json", 500)])
def test_a_unanimous_group_for_the_gold_answer_is_rewarded(ttrl_data: Path, name: str, number: int) -> None:
    golds = gold_answers(ttrl_data, name)
    assert len(golds) == number
    responses = [[f"{word} the answer is $\\boxed{{{gold}}}$." for word in ("So", "Hence", "")] for gold in golds]
    ballots = [
        vote([extract(text, strategies=("boxed", "last_number"), thinking=False) for text in group])
        for group in responses
    ]
    labels = [b.label for b in ballots]
    rewards = score(ballots, labels)
    lost = [gold for gold, group in zip(golds, rewards, strict=True) if group.tolist() != [1, 1, 1]]
    assert lost == []
    right = truth_classes(ballots, golds)
    assert [gold for gold, label, t in zip(golds, labels, right, strict=True) if label is None or label != t] == []
    metrics = audit(ballots, labels, rewards, select(rewards, samples=2), golds)
    assert metrics["label_accuracy"] == metrics["reward_accuracy"] == metrics["votes_ground_truth_reward"] == 1.0
    # Not because everything is the same to it: a group for 31415 has a label, and it is the truth of none.
    strangers = [ballot("31415", "31415")] * number
    assert audit_vote(strangers, golds, samples=1)["label_accuracy"] == 0.0


def test_gold_integers_are_one_class_exactly_when_they_are_equal(ttrl_data: Path) -> None:
    """The files write 25 as `025` and 142 as `142.0`."""
    golds = gold_answers(ttrl_data, "AIME-TTT.json")
    values = [Fraction(gold) for gold in golds]
    assert any(gold != str(value) for gold, value in zip(golds, values, strict=True))
    distinct = list(dict.fromkeys(values))
    written = [Answer(text) for text in golds + [str(v) for v in values] + [f"{int(v):03d}" for v in values]]
    assert classes(written) == [distinct.index(value) for value in values * 3]


def test_questions_without_a_truth_are_left_out_and_the_others_counted() -> None:
    some = [ballot("1", "1", "2"), ballot("5", "6", "5"), ballot("3", "4", "4")]
    found = audit_vote(some, ["1", None, "3"], samples=3)
    assert found.pop("truths") == 2
    assert found == audit_vote([some[0], some[2]], ["1", "3"], samples=3)
    assert truth_classes(some, ["2", None, None]) == [1, None, None]
