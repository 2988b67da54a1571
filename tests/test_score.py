"""Semantics of rewards, selection and the random control; nothing on the way to a reward can see a truth."""

import ast
import inspect
from collections import Counter
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.reward import guard as guard_module
from ttrl_jax.reward import rules as rules_module
from ttrl_jax.reward import score as score_module
from ttrl_jax.reward import vote as vote_module
from ttrl_jax.reward.extract import Answer, extract
from ttrl_jax.reward.score import answered, random_classes, score, select, vote_share, with_format
from ttrl_jax.reward.vote import Ballot, vote


def ballot(*texts: str | None) -> Ballot:
    return vote([None if text is None else Answer(text) for text in texts])


def rewards_of(groups: list[list[str]]) -> np.ndarray:
    """The whole way from response texts to rewards."""
    ballots = [vote([extract(text, strategies=("boxed",), thinking=False) for text in group]) for group in groups]
    return score(ballots, [b.label for b in ballots])


def test_rewards_by_hand() -> None:
    ballots = [ballot("012", "7", "12", None), ballot("3", "5", "5", "3"), ballot(None, None, None, None)]
    rewards = score(ballots, [b.label for b in ballots])
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [[1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]


def test_labels_other_than_the_vote_decide() -> None:
    b = ballot("1", "2", "1", None)
    assert score([b, b, b], [0, 1, None]).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_no_label_rewards_nobody_not_those_without_an_answer() -> None:
    """Both the label and the class of a missing answer are None, and yet they do not match."""
    assert score([ballot(None, "1")], [None]).tolist() == [[0, 0]]


def test_all_none_group_has_no_label_and_zero_rewards() -> None:
    b = vote(
        [extract(text, strategies=("boxed",), thinking=False) for text in ["", "no box", r"\boxed{", r"\boxed{\,}"]]
    )
    assert b.label is None
    assert score([b], [b.label]).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("label", [-1, 2])
def test_a_class_that_the_ballot_lacks_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} is none of the ballot's 2 classes"):
        score([ballot("1", "2")], [label])


def test_every_ballot_needs_its_label() -> None:
    with pytest.raises(ValueError):
        score([ballot("1"), ballot("2")], [0])


def test_reward_is_independent_of_lengths_and_of_other_questions() -> None:
    group = [r"\boxed{5}", r"\boxed{6}", r"\boxed{5.0}", "none"]
    other = [r"\boxed{6}"] * 4
    expected = [1.0, 0.0, 1.0, 0.0]
    assert rewards_of([group])[0].tolist() == expected
    for long in range(4):
        padded = [("so " * 5000 if i == long else "") + text for i, text in enumerate(group)]
        assert rewards_of([padded])[0].tolist() == expected
        assert rewards_of([["so " * 9000 + text for text in other], group, padded])[1:].tolist() == [expected] * 2


def test_rewards_move_with_their_votes() -> None:
    texts = ["4", "9", None, "4", "9", "4", "1"]
    [before] = score([ballot(*texts)], [ballot(*texts).label])
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(len(texts))
        b = ballot(*[texts[i] for i in order])
        np.testing.assert_array_equal(score([b], [b.label])[0], before[order])


def test_vote_shares_by_hand() -> None:
    """Every answer gets the share of all votes in its class; those without an answer are counted, and get nothing."""
    rewards = vote_share([ballot("012", "7", "12", None, "12"), ballot("3", "5", "5", "3", None), ballot(*[None] * 5)])
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(
        rewards, np.float32([[3 / 5, 1 / 5, 3 / 5, 0, 3 / 5], [2 / 5, 2 / 5, 2 / 5, 2 / 5, 0], [0] * 5])
    )
    assert vote_share([ballot("1", "1.0")]).tolist() == [[1, 1]]


def test_any_answer_by_hand() -> None:
    rewards = answered([ballot("012", "7", None), ballot(None, None, "3")])
    assert rewards.dtype == np.float32 and rewards.tolist() == [[1, 1, 0], [0, 0, 1]]


def test_the_format_adds_its_weight() -> None:
    rewards = np.float32([[1, 0, 1, 0], [0.25, 0.5, 0, 0.5]])
    formed = np.array([[True, True, False, False], [False, True, True, False]])
    added = with_format(rewards, formed, weight=0.5)
    assert added.dtype == np.float32
    assert added.tolist() == [[1.5, 0.5, 1, 0], [0.25, 1, 0.5, 0.5]]
    assert with_format(rewards, formed, weight=0.0).tolist() == rewards.tolist()


def test_select_takes_the_first_by_sample_index_whatever_the_rewards() -> None:
    for rewards in (np.zeros((3, 5), np.float32), np.tile(np.arange(5, dtype=np.float32), (3, 1))):
        chosen = select(rewards, samples=2)
        assert chosen.dtype == np.int32
        assert chosen.tolist() == [[0, 1]] * 3
    assert select(np.zeros((1, 5), np.float32), samples=5).tolist() == [[0, 1, 2, 3, 4]]
    assert select(np.zeros((2, 5), np.float32), samples=1).tolist() == [[0], [0]]


@pytest.mark.parametrize("samples", [-1, 0, 6])
def test_select_refuses_fewer_than_one_and_more_than_all(samples: int) -> None:
    with pytest.raises(InputError, match=f"Expected 1 to 5 trained samples .* got {samples}"):
        select(np.zeros((2, 5), np.float32), samples=samples)


# 12, 2, 1 and 1 votes: a draw over the votes instead of the classes would be far from uniform.
SKEWED = ballot(*["a"] * 12, None, "b", "b", "c", "d")


def test_random_classes_are_a_function_of_seed_step_and_index() -> None:
    ballots = [SKEWED] * 40
    ids = list(range(100, 140))
    labels = random_classes(ballots, seed=3, step=8, ids=ids)
    assert labels == random_classes(ballots, seed=3, step=8, ids=ids)
    assert labels[::-1] == random_classes(ballots, seed=3, step=8, ids=ids[::-1])
    assert labels[7:9] == random_classes(ballots[7:9], seed=3, step=8, ids=ids[7:9])
    assert labels != random_classes(ballots, seed=4, step=8, ids=ids)
    assert labels != random_classes(ballots, seed=3, step=9, ids=ids)
    assert labels != random_classes(ballots, seed=3, step=8, ids=[i + 1 for i in ids])
    # The numbers must not be added up: a shift of one is not a shift of the other.
    assert labels[1:] != random_classes(ballots[1:], seed=3, step=9, ids=ids[:-1])
    assert labels[1:] != random_classes(ballots[1:], seed=4, step=8, ids=ids[:-1])
    assert labels != random_classes(ballots, seed=4, step=7, ids=ids)


def test_random_classes_leave_the_global_generator_alone() -> None:
    np.random.seed(0)
    first = random_classes([SKEWED] * 20, seed=0, step=0, ids=range(20))
    state = np.random.get_state()[1].tolist()
    np.random.seed(1)
    assert random_classes([SKEWED] * 20, seed=0, step=0, ids=range(20)) == first
    np.random.seed(0)
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize("varied", ["seed", "step", "index"])
def test_random_classes_are_uniform_over_the_classes(varied: str) -> None:
    draws = 4000
    if varied == "index":
        labels = random_classes([SKEWED] * draws, seed=0, step=0, ids=range(draws))
    else:
        fixed = {"seed": 0, "step": 0}
        labels = [random_classes([SKEWED], **(fixed | {varied: n}), ids=[0])[0] for n in range(draws)]
    seen = Counter(labels)
    assert set(seen) == {0, 1, 2, 3}
    # Chi-square with 3 degrees of freedom: 16.3 is exceeded once in a thousand; the draws are fixed.
    assert sum((n - draws / 4) ** 2 / (draws / 4) for n in seen.values()) < 16.3
    # Each label and the next: 16 pairs, 15 degrees of freedom, 37.7 at one in a thousand.
    pairs = Counter(zip(labels[::2], labels[1::2], strict=True))
    expected = draws / 2 / 16
    assert sum((pairs[a, b] - expected) ** 2 / expected for a in range(4) for b in range(4)) < 37.7


def test_random_classes_of_one_class_and_of_none() -> None:
    assert random_classes([ballot("1", None), ballot(None)], seed=0, step=0, ids=[0, 1]) == [0, None]


# Whatever a function on the way to a reward may be told. A truth under any name is not among them.
PARAMETERS = {
    score_module: {
        "ballots",
        "labels",
        "rewards",
        "reward",
        "formed",
        "weight",
        "samples",
        "seed",
        "step",
        "ids",
        "rows",
    },
    rules_module: {"case", "ballot", "label", "labels", "settings", "pushed"},
    guard_module: {"case", "ballot", "label", "flipped", "visits", "ratio", "risky", "draw"},
    vote_module: {"group", "classes", "ballots", "answers", "same"},
}


@pytest.mark.parametrize("module", PARAMETERS, ids=lambda module: module.__name__)
def test_no_function_takes_a_truth(module: ModuleType) -> None:
    functions = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    assert {name for f in functions for name in inspect.signature(f).parameters} == PARAMETERS[module]


@pytest.mark.parametrize("module", PARAMETERS, ids=lambda module: module.__name__)
def test_nothing_that_knows_a_truth_is_imported(module: ModuleType) -> None:
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in imported if name is not None and name.startswith("ttrl_jax")}
    known = ("equivalence", "extract", "history", "rules", "score", "symbolic", "verdict", "vote")
    assert ours <= {"ttrl_jax.errors", *(f"ttrl_jax.reward.{name}" for name in known)}


def test_a_ballot_holds_votes_only() -> None:
    assert [field.name for field in fields(Ballot)] == ["votes", "classes", "counts", "answers", "undecided", "pairs"]
