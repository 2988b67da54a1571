"""Decide which answers are the same answer.

The vote, the reward and the audit ask `cluster`, for all answers to a question, and `same`, for two, so there is a
single notion of sameness. Answers with one canonical key (`keys.py`) are the same. Of the rest, most are
told apart by what they are and by their values at a few points. The few pairs that are left are put to a symbolic
comparison (`symbolic.py`), and sameness is then made transitive.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from ttrl_jax.reward import symbolic
from ttrl_jax.reward.algebra import Expression, differ
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.keys import Form, read

MAX_PAIRS = 64  # put to a symbolic comparison, for one question
_MAX_KEY_LENGTH = 256  # characters; a longer key is replaced by its digest
_MAX_ASKED = 300  # characters; a longer answer is not compared symbolically
_REMEMBERED = 1_000  # characters; a longer answer is read again each time
_REGION = re.compile(r"inequality|[(\[][)\]]2|set\((?:[(\[][)\]]2 ?)+\)")  # shapes of sets of numbers
_SAME = 1e-9  # relative, of sums of values


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
    """Put the answers to one question into classes of the same answer.

    None, and an answer without anything in it, get the class None. At most `MAX_PAIRS` pairs of keys are compared
    symbolically: those that agree in value first, then those with most votes; the others are undecided.
    """
    forms: dict[str, Form] = {}
    votes: Counter[str] = Counter()
    names: list[str] = []
    for answer in answers:
        name = "" if answer is None else key(answer)
        names.append(name)
        if answer is not None and name:
            forms.setdefault(name, _form(answer.text))
            votes[name] += 1
    pairs = [(a, b) for a, b in combinations(forms, 2) if _may_be_equal(forms[a], forms[b])]
    pairs.sort(key=lambda pair: (not all(forms[name].shape for name in pair), -sum(votes[name] for name in pair)))
    equal = _compare([(forms[a], forms[b]) for a, b in pairs])
    root = {name: name for name in forms}
    for (a, b), same in zip(pairs, equal, strict=True):
        if same:
            root[_top(root, b)] = _top(root, a)
    ids: dict[str, int] = {}
    found = [ids.setdefault(_top(root, name), len(ids)) if name else None for name in names]
    return Clusters(tuple(found), equal.count(None))


def classes(answers: Sequence[Answer | None]) -> list[int | None]:
    """Return the class of each answer as `cluster` does, without the number of undecided pairs."""
    return list(cluster(answers).ids)


def same(one: Answer, other: Answer) -> bool:
    """Return whether two answers are the same; an answer without anything in it is the same as none."""
    names = key(one), key(other)
    if "" in names or names[0] == names[1]:
        return "" not in names
    forms = _form(one.text), _form(other.text)
    return _may_be_equal(*forms) and _compare([forms]) == [True]


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
    """Compare the first `MAX_PAIRS` of the pairs symbolically; None: not decided."""
    if not pairs:
        return []
    asked = pairs[:MAX_PAIRS]
    return [*symbolic.equal([(a.text, b.text) for a, b in asked]), *[None] * (len(pairs) - len(asked))]


def _may_be_equal(a: Form, b: Form) -> bool:
    """Return whether two answers with different keys may be equal all the same."""
    if a.final or b.final or a.shape == b.shape == "number":
        return False
    if max(len(a.text), len(b.text)) > _MAX_ASKED:
        return False
    if not a.shape or not b.shape:
        return True
    kinds = [form.shape.replace("number", "expression") for form in (a, b)]
    if "inequality" in kinds and all(_REGION.fullmatch(kind) for kind in kinds):
        return True  # one that is not solved
    if kinds[0] != kinds[1] and all(_REGION.fullmatch(kind) for kind in kinds):
        return _ends_among(a, b) or _ends_among(b, a)
    if kinds[0] != kinds[1] or len(a.parts) != len(b.parts):
        return False
    if a.ordered:
        return not any(differ(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    return not _sums_differ(a.parts, b.parts)


def _ends_among(interval: Form, union: Form) -> bool:
    """Return whether an interval may be a union of intervals that adjoin: its ends are among theirs."""
    if not interval.ordered or union.ordered:
        return False
    return all(any(not differ(end, part) for part in union.parts) for end in interval.parts)


def _sums_differ(a: Sequence[Expression], b: Sequence[Expression]) -> bool:
    """Return whether two sets of expressions surely differ: their values, or their squares, have different sums."""
    values = [[part.values for part in parts if part.values is not None] for parts in (a, b)]
    if min(map(len, values)) < len(a):
        return False
    scale = max(part.scale for part in (*a, *b))
    for points in zip(*(zip(*rows, strict=True) for rows in values), strict=True):
        for power in (1, 2):
            one, other = (sum(value**power for value in point) for point in points)
            if abs(one - other) > _SAME * len(a) * max(scale, 1.0) ** power:
                return True
    return False


def _top(root: dict[str, str], name: str) -> str:
    while root[name] != name:
        root[name] = root[root[name]]
        name = root[name]
    return name


def _form(text: str) -> Form:
    return _remembered(text) if len(text) <= _REMEMBERED else read(text)


_remembered = lru_cache(maxsize=10_000)(read)


def _bounded(name: str) -> str:
    if len(name) <= _MAX_KEY_LENGTH:
        return name
    # Lone surrogates can come out of a byte-level tokenizer; they are kept apart, not refused.
    return f"{name[:2]}sha256:{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"
