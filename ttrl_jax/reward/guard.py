"""Sameness that ends no run: what a comparison raises on odd text is undecided, and noted with the pair."""

from collections.abc import Sequence
from itertools import combinations

from ttrl_jax.reward import equivalence, symbolic
from ttrl_jax.reward.equivalence import Clusters
from ttrl_jax.reward.extract import Answer

# What reading and comparing may raise on what a model wrote. Signals, and workers that do not start, are no such thing.
_ON_ODD_TEXT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)


def cluster(answers: Sequence[Answer | None]) -> Clusters:
    """As `equivalence.cluster`. Where that raises, all pairs are compared, and only those that raise are undecided."""
    try:
        return equivalence.cluster(answers)
    except _ON_ODD_TEXT:
        return _by_pairs(answers)


def same(one: Answer, other: Answer) -> bool:
    """As `equivalence.same`; False where that raises."""
    try:
        return equivalence.same(one, other)
    except _ON_ODD_TEXT:
        symbolic.note(one.text, other.text)
        return one == other


def _by_pairs(answers: Sequence[Answer | None]) -> Clusters:
    found = [answer for answer in dict.fromkeys(answers) if answer is not None and same(answer, answer)]
    of = {answer: i for i, answer in enumerate(found)}  # a class of each, of which those of same answers become one
    with symbolic.question() as asked:
        for one, other in combinations(found, 2):
            if of[one] != of[other] and same(one, other):
                of = {answer: of[one] if i == of[other] else i for answer, i in of.items()}
    ids: dict[int, int] = {}
    classes = [ids.setdefault(of[answer], len(ids)) if answer in of else None for answer in answers]
    return Clusters(tuple(classes), len(asked.undecided))
