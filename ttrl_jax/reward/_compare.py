"""Decide whether two formulas are equal, with sympy. It runs in the processes of `_worker`, which hold the limits."""

import functools
import re
from collections.abc import Iterator
from itertools import cycle, product, zip_longest

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, _Latex2Sympy, normalize_latex
from latex2sympy2_extended.sets import FiniteSet
from math_verify import verify

_PARSED = 1_000  # formulas that are kept parsed
_DIGITS = 20  # of the values that show two formulas to be different
_FAR = sympy.Rational(1, 10**12)  # two such values differ if they do so by more than this, or this share of them
# Where formulas with variables are evaluated: sizes of the first variable.
_SIZES = (sympy.Rational(37, 100), sympy.Rational(143, 100), sympy.Rational(713, 100))
_SIGNED = 3  # variables that take either sign; any further ones are positive

# Units are not taken off: `2m` would become 2.
_NORMAL = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_Value = sympy.Basic | sympy.MatrixBase
_KINDS = {
    "set": FiniteSet,
    "pair": (sympy.Interval, sympy.Tuple),
    "region": sympy.Set,
    "matrix": sympy.MatrixBase,
    "value": sympy.Expr,
}


class _Reader(_Latex2Sympy):
    """The parser, with exact numbers: 0.333 is not 1/3. Its own way would also hand their text to `eval`."""

    def parse_number(self, text: str) -> sympy.Number:
        return sympy.Rational(text.replace(",", ""))


@functools.lru_cache(maxsize=_PARSED)
def parse(text: str) -> _Value:
    """Read a formula. Variables are real, `i` is the imaginary unit, a per cent is a hundredth."""
    reader = _Reader(
        is_real=True,
        convert_degrees=_TRIGONOMETRY.search(text) is not None,  # 90^\circ alone is 90
        config=ConversionConfig(lowercase_symbols=False),  # R^2 - r^2 is not 0
    )
    found = reader.parse(normalize_latex(text, _NORMAL))
    hundredths = {part: part.args[0] for part in found.atoms(sympy.UnevaluatedExpr)}
    found = found.xreplace({sympy.Symbol("i", real=True): sympy.I, **hundredths})
    found = found.as_explicit() if isinstance(found, sympy.MatrixExpr) else found  # a sum or product of matrices
    return found.replace(_is_odd_root, _real_root)


def _is_odd_root(part: sympy.Basic) -> bool:
    """Whether it is a cube root or the like of what may be negative: in school it is real, in sympy it is not."""
    if not isinstance(part, sympy.Pow) or not isinstance(part.exp, sympy.Rational) or part.exp.q % 2 == 0:
        return False
    return part.exp.q > 1 and bool(part.base.is_real) and not part.base.is_nonnegative


def _real_root(part: sympy.Pow) -> sympy.Expr:
    root = sympy.Abs(part.base) ** part.exp
    return sympy.sign(part.base) * root if part.exp.p % 2 else root


def compare(first: str, second: str) -> bool | None:
    """Whether two formulas are equal, None if that cannot be decided. Raises MemoryError.

    `verify` takes a truth and an answer and treats them differently, so equal means: either way round. Formulas of
    variables are equal if they are wherever both are real: `\\sqrt{xy}` and `\\sqrt x \\sqrt y`.
    """
    try:
        a, b = _bare(parse(first)), _bare(parse(second))
        if not _comparable(a, b) or _differ(a, b):
            return False
        formulas = isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)
        if formulas and _positive(a, b) == 0 or _verified(a, b) and _verified(b, a):
            return True
        # The values agree, as far as there are any, but `verify` found no proof.
        return (a.equals(b) or _positive(a, b).equals(0)) if formulas else False
    except MemoryError:
        raise
    except Exception:
        # The parser and sympy raise whatever they like at what they do not know: not decided.
        return None


def _positive(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """The difference of two formulas for positive variables, with logarithms of products written out."""
    positive = {symbol: sympy.Symbol(f"{symbol}_positive", positive=True) for symbol in a.free_symbols | b.free_symbols}
    return sympy.expand_log((a - b).xreplace(positive))


def _verified(a: _Value, b: _Value) -> bool:
    return verify(a, b, numeric_precision=30, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)


def _bare(value: _Value) -> _Value:
    """Take off what only wraps: `x \\in S` is S, a set of one element the element, an inequality its solutions."""
    if isinstance(value, sympy.Eq) and isinstance(value.rhs, sympy.Set):
        value = value.rhs
    if isinstance(value, sympy.Rel) and not isinstance(value, sympy.Eq) and len(value.free_symbols) == 1:
        value = value.as_set()
    if isinstance(value, sympy.Set):
        value = value.doit()
    return value.args[0] if isinstance(value, FiniteSet) and len(value.args) == 1 else value


def _comparable(a: _Value, b: _Value) -> bool:
    """Whether two formulas are of kinds that can be equal: a value is no matrix, and a relation no value.

    An open interval may be meant as a pair, as both are written `(1, 2)`. A set has no order, so it is no pair:
    `verify` would take both `(1, 2)` and `(2, 1)` for `\\{1, 2\\}`. An inequality describes a region.
    """
    kinds = {_kind(a), _kind(b)}
    if isinstance(a, sympy.Eq) or isinstance(b, sympy.Eq):
        return len(kinds) == 1
    return len(kinds) == 1 or kinds <= {"relation", "region", "pair"}


def _kind(value: _Value) -> str:
    for kind, types in _KINDS.items():
        if isinstance(value, types):
            return kind
    return "relation"


def _differ(a: _Value, b: _Value) -> bool:
    """Whether two values of a kind are certainly different; much faster than showing that they are not."""
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return any(_far_apart(a, b, values) for values in _points(a.free_symbols | b.free_symbols))
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        return a.shape != b.shape or any(map(_differ, a.flat(), b.flat()))
    if isinstance(a, FiniteSet) and isinstance(b, FiniteSet):
        return len(a.args) != len(b.args)
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        return any(map(_differ, a.args[:2], b.args[:2]))
    if isinstance(a, sympy.Tuple) and isinstance(b, sympy.Tuple):
        return len(a) != len(b) or any(map(_differ, a, b))
    return False


def _points(symbols: set[sympy.Symbol]) -> Iterator[dict[sympy.Symbol, sympy.Rational]]:
    """Values of the variables: positive ones of several sizes, then the first few with all signs."""
    ordered = sorted(symbols, key=str)
    few = ordered[:_SIGNED]
    signs = [(1,) * len(few)] * (len(_SIZES) - 1) + list(product((1, -1), repeat=len(few))) if few else [()]
    for size, chosen in zip(cycle(_SIZES), signs):
        yield {
            symbol: one * (size + sympy.Rational(i, 7))
            for i, (symbol, one) in enumerate(zip_longest(ordered, chosen, fillvalue=1))
        }


def _far_apart(a: sympy.Expr, b: sympy.Expr, values: dict[sympy.Symbol, sympy.Rational]) -> bool:
    x, y = a.evalf(_DIGITS, subs=values), b.evalf(_DIGITS, subs=values)
    if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
        return False
    # 1: a value that should be 0 comes out as anything small, so it is not taken for different from 0.
    if not sympy.Abs(x - y) > _FAR * (1 + sympy.Abs(x) + sympy.Abs(y)):
        return False
    # Where a logarithm or a root is not defined, formulas without i say nothing.
    if not values or a.has(sympy.I) or b.has(sympy.I):
        return True
    return all(_is_real(part, values) for formula in (a, b) for part in formula.atoms(sympy.Pow, sympy.log))


def _is_real(part: sympy.Expr, values: dict[sympy.Symbol, sympy.Rational]) -> bool:
    return bool(sympy.Abs(sympy.im(part.evalf(_DIGITS, subs=values))) < _FAR)
