"""Exact sums of products: the arithmetic behind the keys of answers.

An `Expression` is a sum of terms, each a rational number times powers of atoms. Atoms are variables, pi, e and i,
primes under a root (`#3` to the power 1/2), and whatever is not taken apart, under the key of what is in it:
`\\sin(x)`, `(1+x)` in a denominator. Equal keys mean equal expressions; the converse does not hold (`sin^2 + cos^2`).
A key is LaTeX, so that it is also what a symbolic comparison is asked about.

An expression carries its value at a few points as well, to tell most unequal expressions apart without any algebra.
Everything is bounded: digits, exponents, terms. What goes beyond raises `Unread`.
"""

import cmath
import functools
import math
import operator
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

POINTS = 2
MAX_BITS = 4_000  # of a numerator or denominator, about 1,200 digits
_MAX_TERMS = 64
_MAX_EXPANDED = 16  # highest power of a sum that is multiplied out
_MAX_ATOM = 1_000  # characters of an atom
_MAX_FACTORIAL = 200
_LARGEST_DIVISOR = 1_000  # under roots; what is left of the number stays in one piece
_SAME = 1e-9  # of the largest value met on the way: rounding in 64 bits stays far below
_LARGEST_VALUE = 1e100
_ONE = Fraction(1)

# Atom, exponent; sorted by atom, no exponent is 0. Whole ones are int, whose hash is quick.
Monomial = tuple[tuple[str, Fraction | int], ...]


class Unread(Exception):
    """A text is no expression that is read here, or its expression is too large."""


@dataclass(frozen=True)
class Expression:
    """A sum of terms, its value at each of `POINTS` points (None: not computed) and the largest value on the way."""

    terms: Mapping[Monomial, Fraction]
    values: tuple[complex, ...] | None
    scale: float

    def constant(self) -> Fraction | None:
        """Return the value if it is rational, else None."""
        if not self.terms:
            return Fraction(0)
        return self.terms[()] if len(self.terms) == 1 and () in self.terms else None

    def key(self) -> str:
        """Return a LaTeX text that only equal expressions share."""
        terms = [_term(self.terms[monomial], monomial) for monomial in sorted(self.terms)]
        return "+".join(terms).replace("+-", "-") or "0"


def latex(value: Fraction | int) -> str:
    """Return a rational number in LaTeX."""
    sign, above = "-" if value < 0 else "", abs(value.numerator)
    return f"{sign}{above}" if value.denominator == 1 else rf"{sign}\frac{{{above}}}{{{value.denominator}}}"


def _term(factor: Fraction, monomial: Monomial) -> str:
    powers = [_powered(atom, exponent) for atom, exponent in monomial]
    if powers and abs(factor) == 1:
        return ("-" if factor < 0 else "") + r" \cdot ".join(powers)
    return r" \cdot ".join([latex(factor), *powers])


def _powered(atom: str, exponent: Fraction | int) -> str:
    base = atom.removeprefix("#")
    if exponent == 1:
        return base
    if exponent == Fraction(1, 2):
        return rf"\sqrt{{{base}}}"
    return _powered_by(base, latex(exponent))


def differ(a: Expression, b: Expression) -> bool:
    """Return whether the two surely differ, because their values at a point do."""
    if a.values is None or b.values is None:
        return False
    scale = max(a.scale, b.scale)
    return any(abs(x - y) > _SAME * scale for x, y in zip(a.values, b.values, strict=True))


@functools.lru_cache(maxsize=1_000)
def number(value: Fraction) -> Expression:
    """Return a rational number. What is computed from it raises Unread if it gets too many digits."""
    values = _rounded(value)
    return Expression({(): value} if value else {}, values, 0.0 if values is None else abs(values[0]))


def symbol(name: str) -> Expression:
    """Return a variable or a constant: `\\pi`, `e` and `i` have their values, any other name one made from the name."""
    values = tuple(_CONSTANTS[name] if name in _CONSTANTS else _drawn(f"{name} {point}") for point in range(POINTS))
    return _make(_atom(name), values, 0.0)


def add(a: Expression, b: Expression) -> Expression:
    """Return a + b."""
    terms = dict(a.terms)
    for monomial, factor in b.terms.items():
        _gather(terms, monomial, factor)
    return _make(terms, _each(operator.add, a, b), max(a.scale, b.scale))


def multiply(a: Expression, b: Expression) -> Expression:
    """Return a * b, multiplied out. Raises Unread for too many terms."""
    if len(a.terms) * len(b.terms) > 2 * _MAX_TERMS:
        raise Unread("too many terms")
    terms: dict[Monomial, Fraction] = {}
    for one, p in a.terms.items():
        for other, q in b.terms.items():
            if one and other:
                monomial, factor = _collect([*one, *other])
                _gather(terms, monomial, p * q * factor)
            else:
                _gather(terms, one or other, p * q)
    return _make(terms, _each(operator.mul, a, b), max(a.scale, b.scale))


def power(a: Expression, b: Expression) -> Expression:
    """Return a to the power b. Raises Unread for a division by zero and for too large a number."""
    exponent = b.constant()
    values, scale = _each(_power_value, a, b), max(a.scale, b.scale)
    if exponent is None:
        terms = _atom(_powered_by(a.key(), b.key()))
    elif not a.terms:
        if exponent <= 0:
            raise Unread("division by zero")
        terms = {}
    elif exponent.denominator == 1:
        terms = _whole_power(a, exponent.numerator)
    else:
        terms = _root(a, exponent)
    return _make(terms, values, scale)


def negative(a: Expression) -> Expression:
    """Return -a."""
    return _make({monomial: -factor for monomial, factor in a.terms.items()}, _each(operator.neg, a), a.scale)


def divide(a: Expression, b: Expression) -> Expression:
    """Return a / b. Raises Unread for a division by zero."""
    return multiply(a, power(b, number(Fraction(-1))))


def call(name: str, *arguments: Expression) -> Expression:
    """Return a function as an atom: of one argument, `binom` of two, `logbase` of base and argument, `max` of several.

    Computed only where the result is a rational number of a bounded size: abs, floor, factorial, binom, gcd, max. A
    name that is not known here has no value. Raises Unread where there is no such number.
    """
    rational = [argument.constant() for argument in arguments]
    scale = max(argument.scale for argument in arguments)
    exact = _exact(name, rational)
    if exact is not None:
        return number(exact)
    values = _each(_FUNCTIONS[name], *arguments) if name in _FUNCTIONS else None
    keys = [argument.key() for argument in arguments]
    if name in ("gcd", "lcm", "max", "min"):
        keys.sort()
    return _make(_atom(_WRITTEN.get(name, rf"\{name}({{}})").format(",".join(keys), *keys)), values, scale)


def unknown(name: str, *arguments: Expression) -> Expression:
    """Return a function that nothing is known of, `f(x)`: equal arguments have equal values, other ones others."""
    values = tuple(_drawn(name) for _ in range(POINTS))
    total = Expression({}, values, 0.0)
    for place, argument in enumerate(arguments):
        slope = 1 + _drawn(f"{name} {place}")
        wave = _each(lambda x, slope=slope: cmath.sin(slope * x) + slope * x, argument)
        total = Expression({}, _each(lambda x, y: x + y, total, Expression({}, wave, 0.0)), 0.0)
    scale = max(argument.scale for argument in arguments)
    return _make(_atom(f"{name}({','.join(argument.key() for argument in arguments)})"), total.values, scale)


def _exact(name: str, arguments: list[Fraction | None]) -> Fraction | None:
    if None in arguments:
        return None
    if name == "logbase":
        return _logarithm(*arguments)
    whole = all(argument.denominator == 1 for argument in arguments)
    if name in _OF_WHOLE and whole and (name in ("gcd", "lcm") or all(0 <= n <= _MAX_FACTORIAL for n in arguments)):
        return Fraction(_OF_WHOLE[name](*map(int, arguments)))
    return Fraction(_EXACT[name](*arguments)) if name in _EXACT else None


def _logarithm(base: Fraction, value: Fraction) -> Fraction | None:
    """log_2 8 = 3."""
    if base.denominator == 1 and base > 1 and value > 0:
        above, times = max(value, 1 / value), 0
        while above > 1 and above.denominator == 1 and above % base == 0:
            above, times = above / base, times + 1
        if above == 1:
            return Fraction(times if value >= 1 else -times)
    return None


def _make(terms: Mapping[Monomial, Fraction], values: tuple[complex, ...] | None, scale: float) -> Expression:
    terms = {monomial: factor for monomial, factor in terms.items() if factor}
    if len(terms) > _MAX_TERMS:
        raise Unread("too many terms")
    for factor in terms.values():
        if max(factor.numerator.bit_length(), factor.denominator.bit_length()) > MAX_BITS:
            raise Unread("too many digits")
    if values is not None:
        scale = max(scale, *map(abs, values))
        if not scale < _LARGEST_VALUE:  # nan too
            values = None
    return Expression(terms, values, scale)


def _atom(name: str, exponent: Fraction | int = 1, factor: Fraction = _ONE) -> dict[Monomial, Fraction]:
    if len(name) > _MAX_ATOM:
        raise Unread("too long")
    return {((name, exponent),): factor}


def _gather(terms: dict[Monomial, Fraction], monomial: Monomial, factor: Fraction) -> None:
    terms[monomial] = terms[monomial] + factor if monomial in terms else factor


def _collect(powers: list[tuple[str, Fraction | int]]) -> tuple[Monomial, Fraction]:
    """Multiply powers of atoms: whole powers of primes and of i go into the factor."""
    total: dict[str, Fraction | int] = {}
    for atom, exponent in powers:
        total[atom] = total[atom] + exponent if atom in total else exponent
    factor = _ONE
    for atom, exponent in list(total.items()):
        if atom.startswith("#"):
            whole = math.floor(exponent)
            factor *= _bounded_power(Fraction(int(atom[1:])), whole)
            total[atom] = exponent - whole
        elif atom == "i":
            factor *= -1 if exponent % 4 >= 2 else 1
            total[atom] = exponent % 2
    whole = {atom: power.numerator if power.denominator == 1 else power for atom, power in total.items() if power}
    return tuple(sorted(whole.items())), factor


def _bounded_power(base: Fraction, exponent: int) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and bits * abs(exponent) > 2 * MAX_BITS:
        raise Unread("too many digits")
    return base ** (exponent % 2 if abs(base) == 1 else exponent)


def _whole_power(a: Expression, exponent: int) -> Mapping[Monomial, Fraction]:
    if len(a.terms) == 1:
        [(monomial, factor)] = a.terms.items()
        monomial, more = _collect([(atom, p * exponent) for atom, p in monomial])
        return {monomial: _bounded_power(factor, exponent) * more}
    if 0 <= exponent <= _MAX_EXPANDED and len(a.terms) ** exponent <= 2 * _MAX_TERMS:
        result = Expression({(): _ONE}, None, 0.0)
        for _ in range(exponent):
            result = multiply(result, Expression(a.terms, None, 0.0))
        return result.terms
    # 1/(2x + 2) is half of 1/(x + 1): the first factor is taken out
    lead = a.terms[min(a.terms)]
    base = Expression({monomial: factor / lead for monomial, factor in a.terms.items()}, None, 0.0)
    return _atom(f"({base.key()})", exponent, _bounded_power(lead, exponent))


def _root(a: Expression, exponent: Fraction) -> Mapping[Monomial, Fraction]:
    """Raise to a power that is no whole number. Of what is under a root, positive constants are taken apart."""
    if len(a.terms) > 1:
        return _atom(f"({a.key()})", exponent)
    [(monomial, factor)] = a.terms.items()
    if factor == 1 and len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0] != "i":
        return {((monomial[0][0], exponent),): _ONE}
    positive = [(atom, p * exponent) for atom, p in monomial if atom.startswith("#") or atom in (r"\pi", "e")]
    rest = tuple((atom, p) for atom, p in monomial if not (atom.startswith("#") or atom in (r"\pi", "e")))
    if exponent.denominator % 2 and all(p.denominator % 2 and atom != "i" for atom, p in rest):
        # The real root, as in school: it has the sign of what is under it, and a product's root is that of its factors.
        primes = [(f"#{p}", n * exponent) for p, n in _factors(abs(factor))]
        joined, more = _collect([*positive, *primes, *((atom, p * exponent) for atom, p in rest)])
        return {joined: more * (-1 if factor < 0 and exponent.numerator % 2 else 1)}
    sign: list[tuple[str, Fraction | int]] = []
    if factor < 0 and not rest:
        if exponent.denominator != 2:
            return _atom(f"({a.key()})", exponent)
        sign = [("i", exponent.numerator)]
    elif rest:
        under = Expression({rest: _ONE if factor > 0 else -_ONE}, None, 0.0)
        sign = [(f"({under.key()})", exponent)]
    primes = [(f"#{p}", n * exponent) for p, n in _factors(abs(factor))]
    joined, more = _collect([*positive, *primes, *sign])
    return {joined: more}


def _factors(value: Fraction) -> list[tuple[int, int]]:
    """Return primes and exponents of a positive number; a large factor may be no prime."""
    found = []
    for left, direction in ((value.numerator, 1), (value.denominator, -1)):
        divisor = 2
        while divisor <= _LARGEST_DIVISOR and divisor * divisor <= left:
            times = 0
            while left % divisor == 0:
                left, times = left // divisor, times + 1
            if times:
                found.append((divisor, direction * times))
            divisor += 1 if divisor == 2 else 2
        if left > 1:
            root = math.isqrt(left)
            found.append((root, 2 * direction) if root * root == left else (left, direction))
    return found


def _powered_by(base: str, exponent: str) -> str:
    plain = base.isalnum() or _ENCLOSED.fullmatch(base) is not None
    return f"{base if plain else f'({base})'}^{{{exponent}}}"


def _drawn(name: str) -> complex:
    """A number from 0.3 to 1.3 that is made from a name."""
    return complex(0.3 + zlib.crc32(name.encode("utf-8", "surrogatepass")) / 2**32)


def _rounded(value: Fraction) -> tuple[complex, ...] | None:
    try:
        rounded = complex(float(value))
    except OverflowError:
        return None
    return (rounded,) * POINTS if abs(rounded) < _LARGEST_VALUE else None


def _each(function: Callable[..., complex], *arguments: Expression) -> tuple[complex, ...] | None:
    """Apply a function to the values at each point; None where it has none or is too large."""
    rows = [argument.values for argument in arguments if argument.values is not None]
    if len(rows) < len(arguments):
        return None
    try:
        return tuple(complex(function(*point)) for point in zip(*rows, strict=True))
    except (OverflowError, ValueError, ZeroDivisionError):
        return None


def _power_value(x: complex, y: complex) -> complex:
    if x.imag == 0 and x.real < 0 and y.imag == 0:
        near = Fraction(y.real).limit_denominator(99)
        if near.denominator % 2 and near.denominator > 1 and abs(near - Fraction(y.real)) < 1e-12:
            return abs(x) ** y.real * (-1 if near.numerator % 2 else 1)
    return x**y


_ENCLOSED = re.compile(r"\([^()]*\)|\\[A-Za-z]+")  # needs no brackets before an exponent
# Where LaTeX writes a function otherwise than as \name(argument).
_WRITTEN = {
    "abs": "|{0}|",
    "factorial": "({0})!",
    "doublefactorial": "({0})!!",
    "floor": r"\lfloor {0} \rfloor",
    "ceil": r"\lceil {0} \rceil",
    "binom": r"\binom{{{1}}}{{{2}}}",
    "sum": r"\sum_{{{1}={2}}}^{{{3}}}({4})",
    "prod": r"\prod_{{{1}={2}}}^{{{3}}}({4})",
    "logbase": r"\log_{{{1}}}({2})",
}
_EXACT = {"abs": abs, "floor": math.floor, "ceil": math.ceil, "max": max, "min": min}
_OF_WHOLE: dict[str, Callable[..., int]] = {
    **{"gcd": math.gcd, "lcm": math.lcm, "factorial": math.factorial, "binom": math.comb},
    "doublefactorial": lambda n: math.prod(range(n, 0, -2)),
}
_CONSTANTS = {r"\pi": complex(math.pi), "e": complex(math.e), "i": 1j}
_FUNCTIONS: dict[str, Callable[..., complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "ln": cmath.log,
    "abs": abs,
    "logbase": lambda base, x: cmath.log(x) / cmath.log(base),
}
