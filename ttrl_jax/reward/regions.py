"""Sets of numbers that inequalities describe, as intervals: what one says, and what several share."""

import math
import re

from ttrl_jax.reward.algebra import Expression, Unread, add, multiply, negative, number
from ttrl_jax.reward.form import Form, bracketed, expression_form, is_interval, union
from ttrl_jax.reward.formula import read_formula
from ttrl_jax.reward.units import without_unit

MIRROR = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}
VARIABLE = re.compile(r"(?:[A-Za-z]|\\(?!pi\b|infty)[A-Za-z]+)(?: ?_ ?(?:[A-Za-z0-9]|\{ ?[A-Za-z0-9]+ ?\}))?'*")
_UNKNOWN = re.compile(r"[xyzt]|\\theta")  # names of unknowns rather than of given numbers
_ABSOLUTE = re.compile(rf"\| ?({VARIABLE.pattern}) ?\|")
_CALLED = re.compile(r"[fghFGHPQT] ?\( ?[a-z] ?\)")
LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")
_WRITTEN = {"<": "<", "<=": r"\le ", ">": ">", ">=": r"\ge ", "!=": r"\ne ", "": ""}
_INFINITE = {r"\infty": math.inf, r"-\infty": -math.inf}

Interval = tuple[Expression, bool, Expression, bool]  # ends, and whether they belong to it


def inequality(sides: list[str], signs: list[str]) -> tuple[Form, str]:
    """Read an inequality: the form, and the name of the unknown that it bounds, or "".

    `a < x < b` is an interval of x; one that compares letters is not: other inequalities are `expression > 0`, apart
    from a factor, and chains of letters are kept as they are. Raises Unread for chains of both directions.
    """
    if any(sign not in MIRROR for sign in signs):
        raise Unread("relations")
    if len(signs) > 1:
        if signs[0][0] == ">":
            sides, signs = sides[::-1], [MIRROR[sign] for sign in signs[::-1]]
        if any(sign[0] != "<" for sign in signs):
            raise Unread("relations")
        ends = [read_formula(without_unit(side)) for side in sides]
        if len(signs) == 2 and (inside := _ABSOLUTE.fullmatch(sides[1])) and (_value(ends[0]) or -1) > 0:
            low, closed, high, closed_above = ends[0], signs[0] == "<=", ends[2], signs[1] == "<="
            mirror = (negative(high), closed_above, negative(low), closed)
            return union([interval(mirror), interval((low, closed, high, closed_above))]), inside[1]
        if len(signs) > 2 or not _bounds(sides[1], ends[0], ends[2]):
            text = "".join(f"{end.key()}{_WRITTEN[sign]}" for end, sign in zip(ends, [*signs, ""], strict=True))
            if len({letter for end in ends for letter in LETTER.findall(end.key())}) == 1:
                return Form(f"q:{text}", "inequality", (), True, text), ""
            return Form(f"q:{text}", f"chain({' '.join(signs)})", tuple(ends), True, text), ""
        return interval((ends[0], signs[0] == "<=", ends[2], signs[1] == "<=")), sides[1]
    [sign] = signs
    left, right = (read_formula(without_unit(side)) for side in sides)
    if _bounds(sides[1], left) and not _bounds(sides[0], right):
        sides, sign, left, right = sides[::-1], MIRROR[sign], right, left
    if _bounds(sides[0], right):
        return union([interval(piece) for piece in _pieces(sign, right)]), sides[0]
    difference, flipped = monic(left, right)
    sign = MIRROR[sign] if flipped else sign
    [*_, variable] = [atom for monomial in difference.terms for atom, _ in monomial] or [""]
    linear = {monomial for monomial in difference.terms if monomial} == {((variable, 1),)}
    if linear and VARIABLE.fullmatch(variable):  # 2x - 6 > 0
        bound = negative(number(difference.terms.get((), 0)))
        return union([interval(piece) for piece in _pieces(sign, bound)]), variable
    text = f"{difference.key()}{_WRITTEN[sign]}0"
    return Form(f"q:{text}", "inequality", (), True, text), ""


def monic(left: Expression, right: Expression) -> tuple[Expression, bool]:
    """Return left - right divided by its first factor, and whether that is negative."""
    difference = add(left, negative(right))
    if not difference.terms:
        raise Unread("always true")
    first = difference.terms[max(difference.terms)]
    return multiply(number(1 / first), difference), first < 0


def interval(value: Interval) -> Form:
    """The form of an interval."""
    low, closed, high, closed_above = value
    kind = f"{'[' if closed else '('}{']' if closed_above else ')'}"
    return bracketed(kind, [expression_form(low), expression_form(high)])


def shared(forms: list[Form]) -> Form | None:
    """Return what sets of numbers share; None if that is nothing, or the ends are not all known."""
    rest: list[Form] | None = None
    for form in forms:
        pieces = form.items if form.shape.startswith("union") else (form,)
        if not all(is_interval(piece) and None not in map(_value, piece.parts) for piece in pieces):
            return None
        rest = list(pieces) if rest is None else [both for a in rest for b in pieces if (both := _both(a, b))]
    return union(rest) if rest else None


def _both(a: Form, b: Form) -> Form | None:
    low = max((a, b), key=lambda form: (_value(form.parts[0]), form.shape[0] == "("))
    high = min((a, b), key=lambda form: (_value(form.parts[1]), form.shape[1] == "]"))
    left, right = _value(low.parts[0]), _value(high.parts[1])
    if left > right or left == right and (low.shape[0] == "(" or high.shape[1] == ")"):
        return None
    if left == right:
        return expression_form(low.parts[0])
    return interval((low.parts[0], low.shape[0] == "[", high.parts[1], high.shape[1] == "]"))


def value_of(form: Form) -> float | None:
    """The value of a real number; None of what has variables, and of all else."""
    return _value(form.parts[0]) if form.shape in ("number", "expression") else None


def _value(end: Expression) -> float | None:
    if end.key() in _INFINITE:
        return _INFINITE[end.key()]
    known = end.values is not None and all(value == end.values[0] and value.imag == 0 for value in end.values)
    return end.values[0].real if known else None


def _bounds(side: str, *ends: Expression) -> bool:
    """Whether a side is a variable that the ends bound, rather than one of several letters that are compared."""
    if not VARIABLE.fullmatch(side) and not _CALLED.fullmatch(side):
        return False
    atoms = {atom for end in ends for monomial in end.terms for atom, _ in monomial}
    letters = {atom for atom in atoms if VARIABLE.fullmatch(atom) and atom not in ("e", r"\infty", r"\pi")}
    opaque = any("(" in atom and LETTER.search(atom) for atom in atoms)
    if not letters and not opaque:
        return True
    return bool(_UNKNOWN.fullmatch(side)) and not any(map(_UNKNOWN.fullmatch, letters))


def _pieces(sign: str, bound: Expression) -> list[Interval]:
    infinity = read_formula(r"\infty")
    below = (negative(infinity), False, bound, sign == "<=")
    above = (bound, sign == ">=", infinity, False)
    return [below, above] if sign == "!=" else [below] if sign[0] == "<" else [above]
