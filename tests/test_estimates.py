"""Exact estimates against brute force: every subset of the samples, every order of them."""

from fractions import Fraction
from itertools import combinations, permutations
from math import comb

import pytest

from ttrl_jax.reward.estimates import best_of_n, maj_at_k, pass_at_k
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import vote

# counts per class, samples without an answer; class 0 is not always the largest, and some classes tie
GROUPS = [
    ((1,), 0),
    ((3,), 2),
    ((1, 1), 0),
    ((2, 3), 1),
    ((3, 3), 0),
    ((2, 2, 2), 1),
    ((1, 1, 1, 1), 2),
    ((3, 2, 1), 1),
    ((4, 1, 1, 1), 0),
    ((1, 2, 3), 2),
    ((2, 0, 3), 1),
    ((1, 3, 3), 0),
]


def samples_of(counts: tuple[int, ...], unparsed: int) -> list[int | None]:
    return [i for i, c in enumerate(counts) for _ in range(c)] + [None] * unparsed


def wins_by_enumeration(samples: list[int | None], correct: int, k: int) -> Fraction:
    total = Fraction(0)
    for drawn in combinations(samples, k):
        votes = [drawn.count(i) for i in {s for s in samples if s is not None}]
        if drawn.count(correct) == max(votes, default=0) > 0:
            total += Fraction(1, votes.count(drawn.count(correct)))
    return total / comb(len(samples), k)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n: int) -> None:
    for c in range(n + 1):
        samples = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            drawn = [any(subset) for subset in combinations(samples, k)]
            assert pass_at_k(n, c, k) == pytest.approx(sum(drawn) / len(drawn), abs=1e-15)


def test_pass_at_k_of_many_samples() -> None:
    assert pass_at_k(100_000, 25_000, 1) == 0.25
    assert pass_at_k(1000, 1, 500) == 0.5
    assert pass_at_k(1000, 2, 999) == 1.0
    assert pass_at_k(1000, 0, 1000) == 0.0
    assert type(pass_at_k(4, 1, 2)) is float


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_the_impossible(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"got n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(("counts", "unparsed"), GROUPS)
def test_maj_at_k_is_the_share_of_subsets_that_the_truth_wins(counts: tuple[int, ...], unparsed: int) -> None:
    samples = samples_of(counts, unparsed)
    for k in range(1, len(samples) + 1):
        for correct in range(len(counts)):
            expected = float(wins_by_enumeration(samples, correct, k))
            assert maj_at_k(counts, correct, unparsed, k) == pytest.approx(expected, abs=1e-15), (correct, k)


@pytest.mark.parametrize(
    ("counts", "unparsed"), [((1, 1), 0), ((2, 2), 1), ((1, 2, 2), 0), ((2, 1, 1), 2), ((3, 3), 0)]
)
def test_split_ties_are_first_seen_averaged_over_the_order(counts: tuple[int, ...], unparsed: int) -> None:
    """The real vote, with its rule for ties, over the first k of every order of the samples."""
    texts = [None if s is None else Answer(str(s)) for s in samples_of(counts, unparsed)]
    orders = list(permutations(texts))
    for k in range(1, len(texts) + 1):
        won = [0] * len(counts)
        for order in orders:
            b = vote(order[:k])
            if b.label is not None:
                won[int(b.answers[b.label].text)] += 1
        got = [maj_at_k(counts, i, unparsed, k) for i in range(len(counts))]
        assert got == pytest.approx([w / len(orders) for w in won], abs=1e-15), k


@pytest.mark.parametrize(
    ("counts", "unparsed", "expected"),
    [
        ((5, 2, 1), 0, [1, 0, 0]),
        ((5, 2, 1), 90, [1, 0, 0]),  # the unparsed are the most, and do not vote
        ((2, 3, 3), 1, [0, 1 / 2, 1 / 2]),
        ((4, 4, 4, 1), 0, [1 / 3, 1 / 3, 1 / 3, 0]),
    ],
)
def test_all_samples_are_a_plain_vote(counts: tuple[int, ...], unparsed: int, expected: list[float]) -> None:
    n = sum(counts) + unparsed
    assert [maj_at_k(counts, i, unparsed, n) for i in range(len(counts))] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "unparsed", "k", "expected"),
    [
        ((1,), 1, 1, 1 / 2),  # the one that is drawn has an answer, or has none
        ((1,), 1, 2, 1.0),
        ((1,), 3, 2, 1 / 2),
        ((2, 1), 1, 1, 2 / 4),
        ((2, 1), 1, 2, (1 + 2 + 2 / 2) / 6),  # AA, twice A and none, twice A and B; B and none loses
        ((0, 1), 1, 1, 0.0),
    ],
)
def test_samples_without_answer_take_up_draws(counts: tuple[int, ...], unparsed: int, k: int, expected: float) -> None:
    assert maj_at_k(counts, 0, unparsed, k) == pytest.approx(expected)


def test_a_truth_that_nobody_gave_never_wins() -> None:
    assert maj_at_k((3, 1), None, 1, 2) == 0.0
    assert maj_at_k((), None, 3, 2) == 0.0


def test_one_draw_is_the_mean_accuracy() -> None:
    counts, unparsed = (7, 20, 3, 3), 11
    n = sum(counts) + unparsed
    for i, c in enumerate(counts):
        assert maj_at_k(counts, i, unparsed, 1) == pass_at_k(n, c, 1) == pytest.approx(c / n)


@pytest.mark.parametrize("k", [1, 2, 7, 64, 255, 256])
def test_of_many_samples_somebody_wins_unless_nobody_voted(k: int) -> None:
    """Chances of all classes add up to that of at least one answer among the k drawn."""
    counts, unparsed = [60, 41, 30, 30, 12, *[3] * 6, *[1] * 25], 40
    n = sum(counts) + unparsed
    assert n == 256
    chances = [maj_at_k(counts, i, unparsed, k) for i in range(len(counts))]
    assert sum(chances) == pytest.approx(pass_at_k(n, n - unparsed, k), abs=1e-12)
    assert chances == sorted(chances, reverse=True)
    assert chances[2] == chances[3]


@pytest.mark.parametrize(
    ("counts", "correct", "unparsed", "k"),
    [
        ((2, 1), 0, 0, 0),
        ((2, 1), 0, 0, 4),
        ((2, 1), 0, -1, 1),
        ((2, -1), 0, 0, 1),
        ((2, 1), 2, 0, 1),
        ((2, 1), -1, 0, 1),
        ((), None, 0, 1),
    ],
)
def test_maj_at_k_refuses_the_impossible(counts: tuple[int, ...], correct: int | None, unparsed: int, k: int) -> None:
    with pytest.raises(ValueError):
        maj_at_k(counts, correct, unparsed, k)


@pytest.mark.parametrize(
    ("scores", "correct"),
    [
        ((0.0,), (True,)),
        ((-1.0, -2.0), (False, True)),
        ((-2.0, -1.0, -3.0, -1.5), (True, False, True, True)),
        ((-1.0, -1.0, -1.0), (False, True, True)),  # all tie: the earliest of the drawn
        ((-3.0, -1.0, -3.0, -1.0, -2.0, -0.5), (True, False, False, True, True, False)),
        ((-1.0, -2.0, -3.0, -4.0, -5.0), (False,) * 5),
    ],
)
def test_best_of_n_is_the_share_of_subsets_whose_best_is_correct(scores, correct) -> None:
    for n in range(1, len(scores) + 1):
        right = 0
        for drawn in combinations(range(len(scores)), n):
            highest = max(scores[i] for i in drawn)
            right += correct[min(i for i in drawn if scores[i] == highest)]
        assert best_of_n(scores, correct, n) == pytest.approx(right / comb(len(scores), n), abs=1e-15), n


def test_best_of_n_by_hand() -> None:
    # The best of four is wrong, the second right. Of the 6 pairs the second is the best of 2, the third of 1.
    scores, correct = (-1.0, -0.5, -2.0, -3.0), (True, False, True, False)
    assert best_of_n(scores, correct, 1) == 2 / 4
    assert best_of_n(scores, correct, 2) == (2 + 1) / 6
    assert best_of_n(scores, correct, 3) == 1 / 4
    assert best_of_n(scores, correct, 4) == 0


def test_of_64_samples_all_estimates_agree_where_they_must() -> None:
    """One draw is the mean accuracy; 64 of 64 are all of them; and a choice is never better than any-of-k."""
    scores, correct = [-((7 * i) % 64) / 8 for i in range(64)], [i % 5 == 0 for i in range(64)]
    right = sum(correct)
    assert best_of_n(scores, correct, 1) == pass_at_k(64, right, 1) == right / 64
    assert best_of_n(scores, correct, 64) == correct[0] == 1
    chances = [best_of_n(scores, correct, k) for k in range(1, 65)]
    assert all(b <= pass_at_k(64, right, k) for k, b in enumerate(chances, start=1))
    wrong = [best_of_n(scores, [not c for c in correct], k) for k in range(1, 65)]
    assert [b + w for b, w in zip(chances, wrong, strict=True)] == pytest.approx([1.0] * 64)


@pytest.mark.parametrize(("scores", "correct", "n"), [((), (), 1), ((1.0,), (True,), 0), ((1.0,), (True,), 2)])
def test_best_of_n_refuses_the_impossible(scores, correct, n: int) -> None:
    with pytest.raises(ValueError, match=f"got n={n}"):
        best_of_n(scores, correct, n)


def test_best_of_n_refuses_lists_that_do_not_match() -> None:
    with pytest.raises(ValueError):
        best_of_n((1.0, 2.0), (True,), 1)
