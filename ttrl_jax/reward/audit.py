"""Compare votes and rewards with the truth. The numbers are for people to read: nothing is trained on them."""

from collections.abc import Callable, Sequence

import numpy as np

from ttrl_jax.reward.equivalence import same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.score import padded, score
from ttrl_jax.reward.vote import Ballot, classes_of


def truth_classes(
    ballots: Sequence[Ballot], truths: Sequence[str | None], *, same: Callable[[Answer, Answer], bool] = same
) -> list[int | None]:
    """Return the class of each truth in its question's ballot, None if nobody gave it or there is no truth.

    A truth is already an answer, so it does not go through the extractor. same: whether two answers are.
    """
    return classes_of(ballots, [None if truth is None else Answer(truth) for truth in truths], same=same)


def having(truths: Sequence[str | None]) -> tuple[list[int], dict[str, float]]:
    """The places of the questions that have a truth, and their number as the metric `truths` where others have none."""
    places = [i for i, truth in enumerate(truths) if truth is not None]
    return places, {} if len(places) == len(truths) else {"truths": float(len(places))}


def audit(
    ballots: Sequence[Ballot],
    labels: Sequence[int | None],
    rewards: np.ndarray,
    chosen: np.ndarray,
    truths: Sequence[str | None],
    *,
    selective: bool = False,
    same: Callable[[Answer, Answer], bool] = same,
    stopped: bool = False,
) -> dict[str, float]:
    """Measure a step against the truth, under the names of the reference (`_prompt_compute_ttrl_metrics`).

    Args: labels [P], the classes that won or were given; rewards float [P, V]; chosen int [P, G]; truths [P],
    None for a question without one, but not for all; selective: whether the rule leaves questions without a label on
    purpose (`Verdict.selective`); same: whether two answers are; stopped: votes may stop, so that V means nothing.

    Returns means over the questions that have a truth. Correct means: in the class of the truth.
      truths                      how many have one; only where others have none
      label_accuracy              share of questions whose label is the truth
      reward_accuracy             share of the chosen samples whose agreement with the label (1 or 0) is the same as
                                  their agreement with the truth. The format and the vote share, which may also be
                                  part of a reward, do not count
      hit_ratio                   the same over the questions alone whose label is wrong (the paper's lucky hits);
                                  missing where there is none
      ground_truth_reward         share of the chosen samples that are correct
      pass@{G}                    share of questions with a correct sample among the chosen (no estimator)
      votes_reward_accuracy, votes_ground_truth_reward, pass@{V}   the same over all V votes, or over those that count
                                  to a question, each question alike; then without pass@{V}
      point_biserial_correlation  between the whole reward and correctness of all P x G chosen samples; 0.0
                                  when it is undefined, that is when either is the same everywhere
    With selective, label_accuracy, reward_accuracy and votes_reward_accuracy are means over the questions that have a
    label besides, and absent if none has.
    """
    places, metrics = having(truths)
    ballots, labels, truths = ([values[i] for i in places] for values in (ballots, labels, truths))
    rewards, chosen = rewards[places], chosen[places]
    right = truth_classes(ballots, truths, same=same)
    correct = padded([[t is not None and c == t for c in b.classes] for b, t in zip(ballots, right, strict=True)]) > 0
    agrees = score(ballots, labels) == correct
    chosen_correct = np.take_along_axis(correct, chosen, axis=1)
    chosen_rewards = np.take_along_axis(rewards, chosen, axis=1)
    label_right = [t is not None and label == t for label, t in zip(labels, right, strict=True)]
    labelled = [i for i, label in enumerate(labels) if label is not None or not selective]
    wrong = [label is not None and not its for label, its in zip(labels, label_right, strict=True)]
    chosen_agrees = np.take_along_axis(agrees, chosen, axis=1)
    metrics |= {
        "label_accuracy": _mean(np.array(label_right)[labelled]),
        "reward_accuracy": _mean(chosen_agrees[labelled]),
        "ground_truth_reward": np.mean(chosen_correct),
        f"pass@{chosen.shape[1]}": np.mean(np.any(chosen_correct, axis=1)),
        "votes_reward_accuracy": _of_votes(agrees[labelled], [ballots[i] for i in labelled]),
        "votes_ground_truth_reward": _of_votes(correct, ballots),
        **({} if stopped else {f"pass@{rewards.shape[1]}": np.mean(np.any(correct, axis=1))}),
        "point_biserial_correlation": _correlation(chosen_rewards, chosen_correct),
    }
    if any(wrong):
        metrics["hit_ratio"] = np.mean(chosen_agrees[wrong])
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if values.size else None


def _of_votes(values: np.ndarray, ballots: Sequence[Ballot]) -> float | None:
    """The mean over questions of the mean over their votes, of bool [P, V]; None without questions."""
    if not len(values):
        return None
    if all(len(ballot.classes) == values.shape[1] for ballot in ballots):
        return np.mean(values)
    return np.mean([np.mean(row[: len(b.classes)]) for row, b in zip(values, ballots, strict=True)])


def _correlation(rewards: np.ndarray, correct: np.ndarray) -> float:
    x, y = rewards.astype(np.float64).ravel(), correct.astype(np.float64).ravel()
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
