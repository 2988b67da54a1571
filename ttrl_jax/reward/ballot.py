"""What spellings mean beside one another: rules of a ballot, as no two answers alone could decide them.

Each rule makes classes of all answers to a question at once, so that sameness stays transitive, and none depends on
the order of the answers:

  names     `x = 5` and `y = 5` are apart. The bare `5` goes with the name that has most votes, in a tie with the first
            in the alphabet. Where one name alone is voted, 5 and `x = 5` are one.
  percent   `50\\%` is 1/2 if that is voted, else it goes with 50.
  bases     `1011_2` goes with 1011, unless its value, 11, or the same digits in another base are voted.
  letters   `(B) 5` goes with `B` and with 5, unless B has another value in the ballot, or 5 another letter.
  lines     `y = -2x` goes with `2x + y = 0`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from ttrl_jax.reward.form import Form


class Groups:
    """Disjoint sets of texts. A set's root is its first text, so that nothing depends on the order of the unions."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, name: str) -> str:
        while (above := self._above.get(name, name)) != name:
            name = above
        return name

    def unite(self, one: str, other: str) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._above[second] = first


def spelling(form: Form) -> str:
    """Return a text that answers share if they have one key, name and per cent sign."""
    return "\n".join((form.key, form.name, *form.beside))


def by_rules(forms: Mapping[str, Form], votes: Counter[str], value: Callable[[str], str]) -> Groups:
    """Return the classes of spellings.

    Args: forms, by spelling; votes of each spelling; value: key -> what all keys of equal value share.
    """
    classes = Groups()
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(forms):
        if not _percent(forms[name]):
            groups[value(forms[name].key)].append(name)
    main = {of: _by_names(group, forms, votes, classes) for of, group in groups.items()}
    letters = _letters(forms, value)
    for name in sorted(forms):
        form = forms[name]
        others = [value(other) for other in form.beside]
        if _percent(form):
            own = value(form.key)
            target = own if own in main else others[0]
            classes.unite(name, main.get(target, f"{form.key} %"))
            continue
        if form.shape == "base":
            rivals = {other.key for other in forms.values() if other.beside[:1] == form.beside[:1]}
            others = others[:1] if others and (others[1] not in main or others[0] == others[1]) else []
            others = others if len(rivals) == 1 else []
        if form.shape == "choice" and not letters(form):
            others = []
        for other in others:
            if other in main:
                classes.unite(name, main[other])
    return classes


def _percent(form: Form) -> bool:
    return form.shape == "number" and bool(form.beside)


def _by_names(group: list[str], forms: Mapping[str, Form], votes: Counter[str], classes: Groups) -> str:
    """Unite the spellings of one value by the variable they name; return one of the class that the bare value is in."""
    tally: Counter[str] = Counter()
    for name in group:
        tally[forms[name].name] += votes[name]
    named = sorted((name for name in tally if name), key=lambda name: (-tally[name], name))
    first = {name: next(s for s in group if forms[s].name == name) for name in tally}
    for name in group:
        classes.unite(name, first[forms[name].name])
    if named and "" in first:
        classes.unite(first[""], first[named[0]])
    return first[""] if "" in first else first[named[0]]


def _letters(forms: Mapping[str, Form], value: Callable[[str], str]) -> Callable[[Form], bool]:
    """Return whether a letter with a value is the only one of that letter, and of that value."""
    pairs = {tuple(map(value, form.beside)) for form in forms.values() if form.shape == "choice"}
    count = Counter(side for pair in pairs for side in pair)
    return lambda form: all(count[value(other)] == 1 for other in form.beside)
