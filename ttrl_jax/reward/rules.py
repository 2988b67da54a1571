"""What a vote earns, rule by rule; `guard.py` has the one that remembers. Nothing here can see a truth.

A rule is a pure function of a step's ballots, their labels, the evidence beside each vote and the history of the
questions.
"""

import math
from dataclasses import replace

import numpy as np

from ttrl_jax.reward.score import answered, score, vote_share
from ttrl_jax.reward.verdict import Case, Labels, Settings, Verdict, plain
from ttrl_jax.reward.vote import Ballot


def majority(case: Case) -> Verdict:
    """Reward 1 for a vote in the class of the label of its question, else 0 (arXiv 2504.16084)."""
    return plain(case.labels, score(case.ballots, case.labels))


def share(case: Case) -> Verdict:
    """The reward of a vote is the share of all votes that are in its class (arXiv 2504.05812)."""
    return plain(case.labels, vote_share(case.ballots))


def any_answer(case: Case) -> Verdict:
    """Reward 1 for any answer: a control, which tells what is learned of the form from what the votes teach."""
    return plain(case.labels, answered(case.ballots))


# ---------------------------------------------------------------------- SCRL (arXiv 2603.19880), part by part


def gate(case: Case) -> Verdict:
    """The majority's reward where the vote is clear. A question without a label teaches nothing.

    The winner is the label if its share of all votes is at least gate_share, and more than gate_margin above that of
    the runner-up; without a runner-up the share decides alone (SCRL's positive labels, `scrl_utils.py`).
    """
    labels = _gated(case)
    scale = np.array([label is not None for label in labels], np.float32)
    found = {"unlabelled_rate": _unlabelled(labels)}
    return replace(plain(labels, score(case.ballots, labels)), scale=scale, selective=True, found=found)


def negative(case: Case) -> Verdict:
    """Reward -1 for rare and uncertain answers, 0 for all others: no answer is called right (SCRL's negative labels).

    Rare: less than negative_share of all votes. Uncertain: the mean entropy of the responses that have the answer is at
    least that of all responses to the question. What `gate` would make the label is never among them.
    """
    pushed = _negatives(case, _gated(case))
    verdict = plain([None] * len(pushed), -pushed.astype(np.float32))
    return replace(verdict, selective=True, found={"negative_rate": _share_pushed(pushed, case)})


def scrl(case: Case) -> Verdict:
    """SCRL's binary reward: 1 for the label where `gate` gives one, -1 for what `negative` pushes, 0 for all others.

    A question without a label still teaches what its answer is not. As published, no_answer_reward is -1 besides.
    """
    labels = _gated(case)
    pushed = _negatives(case, labels)
    verdict = plain(labels, score(case.ballots, labels) - pushed.astype(np.float32))
    found = {"unlabelled_rate": _unlabelled(labels), "negative_rate": _share_pushed(pushed, case)}
    return replace(verdict, selective=True, found=found)


def _gated(case: Case) -> Labels:
    """The labels that pass the gate; None for the others."""
    pairs = zip(case.ballots, case.labels, strict=True)
    return [label if label is not None and _clear(ballot, label, case) else None for ballot, label in pairs]


def _clear(ballot: Ballot, label: int, case: Case) -> bool:
    mine, runner_up, votes = _counts(ballot, label)
    alone = runner_up == 0
    return mine / votes >= case.settings.gate_share and (
        alone or (mine - runner_up) / votes > case.settings.gate_margin
    )


def _unlabelled(labels: Labels) -> float:
    return float(np.mean([label is None for label in labels]))


def _share_pushed(pushed: np.ndarray, case: Case) -> float:
    """The share of the votes that are pushed away, of all that count."""
    return float(pushed.sum() / sum(len(ballot.classes) for ballot in case.ballots))


def _negatives(case: Case, labels: Labels) -> np.ndarray:
    """The votes that are pushed away, bool [P, V]; labels: those that are given."""
    pushed = np.zeros(case.evidence.entropies.shape, bool)
    for p, (ballot, label) in enumerate(zip(case.ballots, labels, strict=True)):
        classes = np.array([-1 if c is None else c for c in ballot.classes])
        entropies = case.evidence.entropies[p, : len(classes)].astype(np.float64)
        for k, count in enumerate(ballot.counts):
            rare = count / len(classes) < case.settings.negative_share
            if k != label and rare and entropies[classes == k].mean() >= entropies.mean():
                pushed[p, : len(classes)][classes == k] = True
    return pushed


# ---------------------------------------------------------------------- other labels, other weights


def best_of(case: Case) -> Verdict:
    """The label is the answer of the response that the model finds likeliest: the highest mean log-prob of its tokens,
    among the responses that have an answer. Of equal ones the first is taken."""
    labels: Labels = []
    for ballot, logps in zip(case.ballots, case.evidence.mean_logps, strict=True):
        found = np.where([c is None for c in ballot.classes], -np.inf, logps[: len(ballot.classes)])
        labels.append(ballot.classes[int(found.argmax())])
    agreed = [label == winner for label, winner in zip(labels, case.labels, strict=True)]
    return replace(plain(labels, score(case.ballots, labels)), found={"agrees_with_vote": float(np.mean(agreed))})


def soft(case: Case) -> Verdict:
    """The majority's reward, and a question counts as much as its label is likely to be the truth: see `chance`."""
    pairs = zip(case.ballots, case.labels, strict=True)
    scale = [0.0 if label is None else chance(ballot, label, case.settings) for ballot, label in pairs]
    return replace(majority(case), scale=np.float32(scale), found={"scale": float(np.mean(scale))})


def chance(ballot: Ballot, label: int, settings: Settings) -> float:
    """How likely a label is to be the truth, by its votes: 1 / (1 + exp(-(soft_slope z + soft_offset))).

    z = log(c1 + 1/2) - (log(n - c1 + 1/2) + log(c2 + 1/2)) / 2, where c1 of n votes are for the label and c2 for the
    runner-up: the mean of its log-odds against all other votes, and against the runner-up alone. It grows with the
    share of the votes and with the margin, and with n where all agree.
    """
    # Slope 1 and offset 0 are calibrated on no data. They say 1/2 where two answers have half of the votes each, and of
    # two answers that all votes are for, about their shares. Questions with known answers can fit both.
    mine, runner_up, votes = _counts(ballot, label)
    z = math.log(mine + 0.5) - (math.log(votes - mine + 0.5) + math.log(runner_up + 0.5)) / 2
    return 1 / (1 + math.exp(-(settings.soft_slope * z + settings.soft_offset)))


def _counts(ballot: Ballot, label: int) -> tuple[int, int, int]:
    """Votes for the label, for the most common class besides (0: there is none), and of all."""
    others = [count for k, count in enumerate(ballot.counts) if k != label]
    return ballot.counts[label], max(others, default=0), len(ballot.classes)
