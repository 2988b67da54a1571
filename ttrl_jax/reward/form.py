"""What was read of an answer, and how the keys of compound answers are made from those of their parts.

A form has one text for each key. It is made from what was read, so that a symbolic comparison never sees the spelling
that happened to come first.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from ttrl_jax.reward.algebra import Expression, Monomial, Unread, latex, number

# Anything that is more than digits and signs; 1e999999999 is not.
_MACRO_OR_LETTER = re.compile(r"\\|(?<![0-9])[A-Za-z]|[A-Za-z](?![0-9+-])|[A-DF-Za-df-z]")
_AXES = (r"\hat{i}", r"\hat{j}", r"\hat{k}")


@dataclass(frozen=True)
class Form:
    """An answer as it was read."""

    key: str  # equal keys mean equal answers
    shape: str  # what kind of thing it is; "" where the text could not be read
    parts: tuple[Expression, ...]  # the expressions in it
    ordered: bool  # the parts have places
    text: str  # what a symbolic comparison is asked about
    fixed: tuple[str, ...] = ()  # keys of the words, times and bases in it, which no comparison finds equal to others
    name: str = ""  # the variable whose value it was said to be
    items: tuple["Form", ...] = ()  # of a set or a union
    beside: tuple[str, ...] = ()  # keys of what it may stand for as well, if a ballot says nothing against it

    @property
    def final(self) -> bool:
        """No symbolic comparison can find it equal to an answer with another key."""
        if not self.shape:
            return not _MACRO_OR_LETTER.search(self.text)
        return bool(self.fixed) and not self.parts


def number_form(value: Fraction) -> Form:
    """A rational number."""
    return Form(f"n:{value}", "number", (number(value),), True, latex(value))


def expression_form(value: Expression) -> Form:
    """An expression, or the number that it is."""
    rational = value.constant()
    if rational is not None:
        return number_form(rational)
    text = value.key()
    return Form(f"e:{text}", "expression", (value,), True, text)


def fixed_form(key: str, shape: str, beside: tuple[str, ...] = ()) -> Form:
    """Words and what else has no algebra."""
    return Form(key, shape, (), True, key, (key,), beside=beside)


def collection(forms: list[Form], *, distinct: bool) -> Form:
    """A set, or a list with its repetitions; one item is itself."""
    flat = {form.key: form for form in forms}
    keys = sorted(flat if distinct else [form.key for form in forms])
    if len(keys) == 1:
        return flat[keys[0]]
    kind = "set" if len(keys) == len(flat) else "list"
    return _together(kind, [flat[key] for key in keys], rf"\{{{', '.join(flat[key].text for key in keys)}\}}")


def union(forms: list[Form]) -> Form:
    """Intervals and points that are one set of numbers."""
    flat = {form.key: form for form in forms}
    keys = sorted(flat)
    if len(keys) == 1:
        return flat[keys[0]]
    text = r" \cup ".join(flat[key].text if is_interval(flat[key]) else rf"\{{{flat[key].text}\}}" for key in keys)
    return _together("union", [flat[key] for key in keys], text)


def is_interval(form: Form) -> bool:
    """Whether it is an interval, or a pair, which may be written alike."""
    return form.shape in ("()2", "(]2", "[)2", "[]2")


def _together(kind: str, items: list[Form], text: str) -> Form:
    shapes = " ".join(sorted("expression" if item.shape == "number" else item.shape for item in items))
    parts = tuple(part for item in items for part in item.parts)
    fixed = tuple(sorted(name for item in items for name in item.fixed))
    key = f"{kind}:{{{';'.join(item.key for item in items)}}}"
    return Form(key, f"{kind}({shapes})", parts, False, text, fixed, items=tuple(items))


def tuple_form(shape: str, forms: list[Form], text: str) -> Form:
    """Parts that have places: a point, an interval, a matrix, a ratio. Raises Unread for sets in it."""
    if not all(form.ordered for form in forms):
        raise Unread("a set in a tuple")
    shape = f"{shape}{len(forms)}"
    parts = tuple(part for form in forms for part in form.parts)
    fixed = tuple(name for form in forms for name in form.fixed)
    return Form(f"{shape}:{';'.join(form.key for form in forms)}", shape, parts, True, text, fixed)


def bracketed(kind: str, forms: list[Form]) -> Form:
    """A point or an interval: `kind` is its brackets."""
    return tuple_form(kind, forms, f"{kind[0]}{', '.join(form.text for form in forms)}{kind[1]}")


def vector(value: Expression) -> Form:
    """Read `\\hat i + 2\\hat j` as the point (1, 2); an expression without axes is itself. Raises Unread for others."""
    axes: dict[str, dict[Monomial, Fraction]] = {}
    for monomial, factor in value.terms.items():
        found = [power for power in monomial if power[0] in _AXES]
        if len(found) > 1 or found and found[0][1] != 1:
            raise Unread("a product of axes")
        axis = found[0][0] if found else ""
        axes.setdefault(axis, {})[tuple(power for power in monomial if power not in found)] = factor
    if not axes.keys() - {""}:
        return expression_form(value)
    if "" in axes:
        raise Unread("an axis beside a number")
    names = _AXES if _AXES[2] in axes else _AXES[:2]
    return bracketed("()", [expression_form(Expression(axes.get(name, {}), None, 0.0)) for name in names])
