"""Read remainders and sums of unit vectors."""

import re
from fractions import Fraction

from ttrl_jax.reward.algebra import Expression, Unread, add, multiply, number
from ttrl_jax.reward.form import Form, bracketed, expression_form, fixed_form
from ttrl_jax.reward.formula import read_formula

_REMAINDER = re.compile(r"(?:[A-Za-z] ?\\equiv ?)?(.+?) ?(?:\( ?)?\\pmod ?(.+?)(?: ?\))?")
_AXIS = re.compile(r"\\hat\{([ijk])\}")


def read_remainder(text: str) -> Form | None:
    """Read `x \\equiv 10 \\pmod 7`, which is `3 \\pmod 7`; None for anything else."""
    match = _REMAINDER.fullmatch(text) if "\\pmod" in text else None
    if match is None:
        return None
    rest, modulus = (read_formula(part) for part in match.groups())
    whole = rest.constant(), modulus.constant()
    if None not in whole and whole[1] > 0:
        rest = number(whole[0] % whole[1])
    return fixed_form(f"m:{rest.key()} mod {modulus.key()}", "remainder")


def vector(value: Expression) -> Form:
    """Read `\\hat i + 2\\hat j` as the point (1, 2); what is no sum of axes is an expression."""
    axes: dict[str, Expression] = {}
    for monomial, factor in value.terms.items():
        found = [(atom, power) for atom, power in monomial if _AXIS.fullmatch(atom)]
        if not found:
            break
        if len(found) > 1 or found[0][1] != 1:
            raise Unread("a product of axes")
        rest = tuple(power for power in monomial if power != found[0])
        part = multiply(number(factor), _monomial(rest))
        axis = _AXIS.fullmatch(found[0][0])[1]
        axes[axis] = add(axes[axis], part) if axis in axes else part
    if not axes:
        return expression_form(value)
    names = "ijk" if "k" in axes else "ij"
    return bracketed("()", [expression_form(axes.get(name, number(Fraction(0)))) for name in names])


def _monomial(powers: tuple[tuple[str, Fraction], ...]) -> Expression:
    result = number(Fraction(1))
    for atom, exponent in powers:
        result = multiply(result, Expression({((atom, exponent),): Fraction(1)}, None, 0.0))
    return result
