"""Decide which answers are the same answer.

The vote, the reward and the audit ask `cluster`, for all answers to a question, and `same`, for two, so there is a
single notion of sameness. Answers with one canonical key (`keys.py`) are the same. Of the rest, most are
told apart by what they are and by their values at a few points. The few pairs that are left are put to a symbolic
comparison (`symbolic.py`), and sameness is then made transitive. What spellings mean beside one another, as `50\\%` and
50, is a matter of the whole ballot (`ballot.py`).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from ttrl_jax.reward import symbolic
from ttrl_jax.reward.algebra import Expression, differ
from ttrl_jax.reward.ballot import Groups, by_rules, spelling
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.keys import Form, read
from ttrl_jax.reward.regions import value_of

MAX_PAIRS = 64  # put to a symbolic comparison, for one question
_MAX_KEY_LENGTH = 256  # characters; a longer key is replaced by its digest
_MAX_ASKED = 300  # characters; a longer answer is not compared symbolically
_REMEMBERED = 1_000  # characters; a longer answer is read again each time
_REGION = re.compile(r"inequality|[(\[][)\]]2|union\(.*\)")  # shapes of sets of numbers
_SAME = 1e-9  # relative, of sums of values
_LONG = 9  # digits of a denominator
_ROUNDING = 1e-12  # relative, of a decimal with that many digits
# What reading and comparing may raise on what a model wrote. Signals, and workers that do not start, are no such thing.
_ON_ODD_TEXT = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError),
    *(RecursionError, TypeError, ValueError),
)


@dataclass(frozen=True)
class Clusters:
    """Classes of the answers to one question."""

    ids: tuple[int | None, ...]  # class of each answer: 0, 1, ... by first appearance; None: no answer
    undecided: int  # pairs of different keys that might be equal, but could not be decided; they count as different


def key(answer: Answer) -> str:
    """Return the canonical key of an answer; "" if there is nothing in it (`\\boxed{\\,}`).

    `n:` and an exact fraction for numbers, another kind and a canonical text for the rest, `s:` and the text as it is
    spelled for what is not read. Equal keys mean equal answers. Linear time; a long key is replaced by its digest.
    """
    return _bounded(_form(answer.text).key)


def cluster(answers: Sequence[Answer | None]) -> Clusters:
    """Put the answers to one question into classes of the same answer; their order does not matter.

    None, and an answer without anything in it, get the class None. At most `MAX_PAIRS` pairs of keys are compared
    symbolically: those that agree in value first, then those with most votes; the others are undecided. What spellings
    mean beside one another, `ballot.by_rules` says. Nothing that a text may cause is raised: where it would be, all
    pairs are compared one by one, and those that raise are undecided.
    """
    try:
        return _cluster(answers)
    except _ON_ODD_TEXT:
        return _by_pairs(answers)


def _cluster(answers: Sequence[Answer | None]) -> Clusters:
    read = [None if answer is None else _form(answer.text) for answer in answers]
    names = [spelling(form) if form is not None and form.key else "" for form in read]
    forms = {name: form for name, form in zip(names, read, strict=True) if name and form is not None}
    votes = Counter(name for name in names if name)
    values = {form.key: form for form in forms.values()}
    counts: Counter[str] = Counter()
    for name, form in forms.items():
        counts[form.key] += votes[name]
    unsettled = sorted(key for key, form in values.items() if not form.final)
    pairs = [(a, b) for a, b in combinations(unsettled, 2) if _may_be_equal(values[a], values[b])]
    pairs.sort(key=lambda pair: (not all(values[key].shape for key in pair), -sum(counts[key] for key in pair), pair))
    equal = _compare([(values[a], values[b]) for a, b in pairs])
    same = Groups()
    for (a, b), found in zip(pairs, equal, strict=True):
        if found:
            same.unite(a, b)
    for a, b in _rounded(values):
        same.unite(a, b)
    groups = by_rules(forms, votes, same.root)
    ids: dict[str, int] = {}
    return Clusters(
        tuple(ids.setdefault(groups.root(name), len(ids)) if name else None for name in names), equal.count(None)
    )


def _by_pairs(answers: Sequence[Answer | None]) -> Clusters:
    texts = [answer.text if answer is not None and _holds_something(answer.text) else None for answer in answers]
    groups, undecided = Groups(), 0
    for one, other in combinations(dict.fromkeys(text for text in texts if text is not None), 2):
        try:
            found = _cluster((Answer(one), Answer(other)))
        except _ON_ODD_TEXT:
            symbolic.note(one, other)
            undecided += 1
            continue
        undecided += found.undecided
        if found.ids == (0, 0):
            groups.unite(one, other)
    ids: dict[str, int] = {}
    classes = (None if text is None else ids.setdefault(groups.root(text), len(ids)) for text in texts)
    return Clusters(tuple(classes), undecided)


def _holds_something(text: str) -> bool:
    try:
        return bool(_form(text).key)
    except _ON_ODD_TEXT:
        return True


def classes(answers: Sequence[Answer | None]) -> list[int | None]:
    """Return the class of each answer as `cluster` does, without the number of undecided pairs."""
    return list(cluster(answers).ids)


def same(one: Answer, other: Answer) -> bool:
    """Return whether two answers are the same, as the only two of a ballot; one without anything in it is not."""
    first, second = cluster((one, other)).ids
    return first is not None and first == second


def surely(one: Answer, other: Answer) -> bool | None:
    """Return whether two answers are in one class in every ballot (True), or in none (False); None: that is for the
    ballot to say, or for a comparison of formulas. One without anything in it is not the same, not even as itself.

    Quick: texts are read, and values compared at a few points, without a deadline. Whatever `cluster` unites is joined
    by pairs of the same ballot for which this is not False: equal keys, values that may be equal or that a decimal
    rounds, and what stands for another spelling (ballot.py). Nothing that a text may cause is raised.
    """
    try:
        a, b = _form(one.text), _form(other.text)
        if not a.key or not b.key:
            return False
        if spelling(a) == spelling(b):
            return True
        if a.key == b.key or a.key in b.beside or b.key in a.beside or any(_rounded({a.key: a, b.key: b})):
            return None
        return None if not a.final and not b.final and _may_be_equal(a, b) else False
    except _ON_ODD_TEXT:
        return True if one == other else None


def classes_by(same: Callable[[Answer, Answer], bool]) -> Callable[[Sequence[Answer | None]], Clusters]:
    """Return what `cluster` is for another notion of sameness: an answer joins the first class whose first answer is
    the same, so that `same` is asked for each class at most once. Nothing stays undecided."""

    def cluster(answers: Sequence[Answer | None]) -> Clusters:
        seen: list[Answer] = []
        ids: list[int | None] = []
        for answer in answers:
            if answer is None:
                ids.append(None)
                continue
            found = next((i for i, other in enumerate(seen) if same(other, answer)), len(seen))
            if found == len(seen):
                seen.append(answer)
            ids.append(found)
        return Clusters(tuple(ids), 0)

    return cluster


def _compare(pairs: list[tuple[Form, Form]]) -> list[bool | None]:
    """Compare the first `MAX_PAIRS` of the pairs symbolically; None: not decided. As many of the others are noted."""
    texts = [(a.text, b.text) for a, b in pairs]
    found = symbolic.equal(texts[:MAX_PAIRS]) if texts else []
    for first, second in texts[MAX_PAIRS : 2 * MAX_PAIRS]:
        symbolic.note(first, second)
    return found + [None] * (len(texts) - len(found))


def _rounded(values: Mapping[str, Form]) -> Iterator[tuple[str, str]]:
    """The keys of decimals with a dozen digits, as machines print them, and of the values that they round, in pairs."""
    for long in [key for key, form in values.items() if form.shape == "number" and len(key.partition("/")[2]) > _LONG]:
        decimal = value_of(values[long])
        for other, form in values.items():
            value = value_of(form)
            if value is not None and decimal is not None and abs(value - decimal) <= _ROUNDING * abs(decimal):
                yield long, other


def _may_be_equal(a: Form, b: Form) -> bool:
    """Return whether two answers with different keys, neither of them final, may be equal all the same."""
    if a.shape == b.shape == "number" or a.fixed != b.fixed:
        return False
    if max(len(a.text), len(b.text)) > _MAX_ASKED:
        return False
    if not a.shape or not b.shape:
        return True
    kinds = [form.shape.replace("number", "expression") for form in (a, b)]
    if kinds[0] != kinds[1] and all(map(_REGION.fullmatch, kinds)):
        return "inequality" in kinds or _ends_among(a, b) or _ends_among(b, a)  # one that is not solved
    if kinds[0] != kinds[1] or len(a.parts) != len(b.parts):
        return False
    if a.ordered:
        return not any(differ(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    return not _sums_differ(a.parts, b.parts, known=a.shape.startswith("list"))


def _ends_among(interval: Form, union: Form) -> bool:
    """Return whether an interval may be a union of intervals that adjoin: its ends are among theirs."""
    if not interval.ordered or union.ordered:
        return False
    return all(any(not differ(end, part) for part in union.parts) for end in interval.parts)


def _sums_differ(a: Sequence[Expression], b: Sequence[Expression], *, known: bool) -> bool:
    """Return whether two sets of expressions surely differ: their values, or their squares, have different sums.

    known: what has no values counts as different, as a symbolic comparison does not see repetitions.
    """
    values = [[part.values for part in parts if part.values is not None] for parts in (a, b)]
    if min(map(len, values)) < len(a):
        return known
    scale = max((part.scale for part in (*a, *b)), default=0.0)
    for points in zip(*(zip(*rows, strict=True) for rows in values), strict=True):
        for power in (1, 2):
            one, other = (sum(value**power for value in point) for point in points)
            if abs(one - other) > _SAME * len(a) * max(scale, 1.0) ** power:
                return True
    return False


def _form(text: str) -> Form:
    return _remembered(text) if len(text) <= _REMEMBERED else read(text)


_remembered = lru_cache(maxsize=10_000)(read)


def _bounded(name: str) -> str:
    if len(name) <= _MAX_KEY_LENGTH:
        return name
    # Lone surrogates can come out of a byte-level tokenizer; they are kept apart, not refused.
    return f"{name[:2]}sha256:{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"
