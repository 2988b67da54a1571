"""What was read of an answer, and how the keys of compound answers are made from those of their parts."""

import re
from dataclasses import dataclass
from fractions import Fraction

from ttrl_jax.reward.algebra import Expression, Unread, number

# Anything that is more than digits and signs; 1e999999999 is not.
_MACRO_OR_LETTER = re.compile(r"\\|(?<![0-9])[A-Za-z]|[A-Za-z](?![0-9+-])|[A-DF-Za-df-z]")


@dataclass(frozen=True)
class Form:
    """An answer as it was read."""

    key: str  # equal keys mean equal answers
    shape: str  # what kind of thing it is; "" where the text could not be read
    parts: tuple[Expression, ...]  # the expressions in it
    ordered: bool  # the parts have places
    text: str  # what a symbolic comparison is asked about

    @property
    def final(self) -> bool:
        """No symbolic comparison can find it equal to an answer with another key."""
        return self.shape in ("words", "time", "base") or (not self.shape and not _MACRO_OR_LETTER.search(self.text))


def number_form(value: Fraction, text: str) -> Form:
    """A rational number."""
    return Form(f"n:{value}", "number", (number(value),), True, text)


def expression_form(value: Expression, text: str) -> Form:
    """An expression, or the number that it is."""
    rational = value.constant()
    if rational is not None:
        return number_form(rational, text)
    return Form(f"e:{value.key()}", "expression", (value,), True, text)


def collection(forms: list[Form], text: str, *, distinct: bool) -> Form:
    """A set, or a list with its repetitions; where all items are the same, the item."""
    keys = sorted({form.key for form in forms} if distinct else [form.key for form in forms])
    flat = {form.key: form for form in forms}
    if len(flat) == 1:
        return flat[keys[0]]
    shapes = sorted(flat[key].shape for key in keys)
    shape = f"set({' '.join('expression' if s == 'number' else s for s in shapes)})"
    return Form(f"{shape[:3]}:{{{';'.join(keys)}}}", shape, tuple(p for k in keys for p in flat[k].parts), False, text)


def tuple_form(shape: str, forms: list[Form], text: str) -> Form:
    """Parts that have places: a point, an interval, a matrix, a ratio. Raises Unread for sets in it."""
    if not all(form.ordered for form in forms):
        raise Unread("a set in a tuple")
    shape = f"{shape}{len(forms)}"
    parts = tuple(part for form in forms for part in form.parts)
    return Form(f"{shape}:{';'.join(form.key for form in forms)}", shape, parts, True, text)
