"""What an equation says: a name of a value, the end of a chain, or a relation of unknowns."""

import re

from ttrl_jax.reward.algebra import Expression, Unread
from ttrl_jax.reward.form import Form
from ttrl_jax.reward.regions import VARIABLE, monic, value_of

# What may stand before "=" as a name: x, x_1, AB, \angle ABC, \text{Area}, f(x + 1), a(n); not the product x(y + 1).
_INDEX = r"(?: ?_ ?(?:[A-Za-z0-9]|\{[^{}]*\}))?'*"
_NAME = re.compile(
    r"(?:(?:m ?)?\\(?:angle|triangle|measuredangle) ?)?(?:"
    rf"[fghpqFGHPQ]{_INDEX} ?(?:\^ ?\{{ ?-1 ?\}} ?)?\([^()]*\)"
    rf"|(?:[A-Za-z]|\\(?!pi\b|infty|frac|sqrt)[a-zA-Z]+){_INDEX}(?: ?\([A-Za-z0-9, ]*\))?"
    r"|[A-Z]{2,3}(?: ?\^ ?\{? ?[23] ?\}?)?|[A-Za-z]{3,20}|\|[A-Z]{1,2}\||\\frac ?\{[A-Z]{2}\} ?\{[A-Z]{2}\}"
    rf"|\\(?:text|mathrm|overline|vec|hat) ?\{{[^{{}}]*\}}{_INDEX}(?: ?\([^()]*\))?)"
)
_NAMES = re.compile(r"\( ?[A-Za-z](?:_[0-9])?(?: ?, ?[A-Za-z](?:_[0-9])?)+ ?\)")
_FUNCTION = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc|log|lg|ln|sqrt|exp|gcd|lcm|max|min|lfloor|lceil)(?![a-z])")
# A quantity that a question asks for: m+n, a+b+c, 100m+n, ab; not x+y, which may be a line, and not 2n or n^2.
QUANTITY = re.compile(
    r"(?=(?:.*[a-zA-Z]){2})(?:[0-9]{0,4} ?[a-wA-W](?: ?_ ?[0-9])?(?: ?[-+] ?|(?<=[a-wA-W])(?=[a-wA-W])|$))+"
)


def is_name(text: str) -> bool:
    """Return whether a text is a name: of a variable, a function of one, a length, an angle, or of several at once."""
    if _FUNCTION.match(text):
        return False
    if _NAMES.fullmatch(text):
        return True
    return all(_NAME.fullmatch(part.strip()) for part in text.split(":"))  # AB:CD = 3:4


def conclusion(sides: list[str], forms: list[Form], *, named: bool) -> Form | None:
    """What a chain of unequal sides ends in, if that is a value: the last side, or the one that it rounds.

    `x = 2 + 3 = 6` says 6, whatever the sum is; without a name, sides that contradict each other say nothing.
    """
    last, before = value_of(forms[-1]), value_of(forms[-2])
    if any(map(VARIABLE.fullmatch, sides[:-1])):
        raise Unread("several unknowns")  # x = y = 3
    if last is None:
        return None
    decimal = re.search(r"\.([0-9]+)", sides[-1])
    if decimal and before is not None and abs(last - before) < 10.0 ** -len(decimal[1]):
        return forms[-2]
    return forms[-1] if named and (last or before is not None) else None  # f(x) = x^2 - 1 = 0 is an equation


def equation(left: Expression, right: Expression) -> Form:
    """The equation of two expressions, apart from sides, order and a factor. Raises Unread for one without unknowns."""
    difference = monic(left, right)[0]
    if difference.constant():
        raise Unread("never true")
    return Form(f"q:{difference.key()}=0", "equation", (), True, f"{difference.key()}=0")
