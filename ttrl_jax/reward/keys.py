"""Read an answer as a `Form`: its canonical key, and what is needed to tell it from others without any algebra.

What is alike (the tests hold a list with reasons):
  numbers       `025` = 25, `1{,}234` = `1,234`, `\\dfrac12` = 0.5, `3\\frac12` = 7/2, `1.5e3`; equality is exact
  percent       `50\\%` = `50 percent` = 1/2; it is not 50, as then 0.5 would be 50 as well
  degrees       `90^\\circ` = 90
  units         dropped, and so are currencies: `5 cm` = `5 m` = `\\$5` = 5
  names         `x = 5` = `f(2) = 5` = `x \\in \\{5\\}` = 5; `x = 2, y = 3` and `(x, y) = (2, 3)` = `(2, 3)`, by name
  lists, sets   the order is free, and a list is a set unless it has an item twice: `1, 2` = `\\{2, 1\\}`; `\\{5\\}` = 5
  `\\pm`         two answers: `1 \\pm 2` = `3, -1`
  `\\cup`, or    a set of intervals
  intervals     `x > 5` = `5 < x` = `(5, \\infty)`; `(1, 2)` is one key as a point and as an interval, `[1, 2]` another
  matrices      alike with any brackets and as arrays; bars are a determinant
  equations     apart from sides, order and a factor
  bases         `1011_2` is neither 1011 nor 11: a base was asked for; `_{10}` is dropped
  words         case, articles, `\\text` and punctuation do not count; of several, the order is free
  letters       `(B)` and `\\text{B.}` are `B`
  times         `6:00 PM` = `6 \\text{ p.m.}`
"""

import re

from ttrl_jax.reward.algebra import Expression, Unread, add, multiply, negative, number, symbol
from ttrl_jax.reward.form import Form, collection, expression_form, number_form, tuple_form
from ttrl_jax.reward.formula import has_sign, read_formula
from ttrl_jax.reward.spelling import plain, read_number, without_end, without_thousands, without_unit, without_wrapper
from ttrl_jax.reward.words import read_base, read_time, read_words

_MAX_LENGTH = 1_000  # characters; a longer answer that is no number is compared as text
_MAX_DEPTH = 4  # tuples in sets in lists ...
_MAX_ITEMS = 64

# "1 2" is not "12": a space between two digits means something, any other does not.
_IDLE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")
_HUGE = re.compile(r"[+-]?[0-9.,]+[eE][+-]?[0-9]+")  # a power of ten, but not one that was read: not 1 times e - 1001
_PIECE = re.compile(
    r"\\begin(?![A-Za-z])|\\end(?![A-Za-z])|\\[lr](?:floor|ceil)(?![A-Za-z])"
    r"|(?P<cup>\\cup(?![A-Za-z]))"
    r"|(?P<relation>\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne|in|approx)(?![A-Za-z])|<=|>=|!=|[=<>])"
    r"|\\[A-Za-z]+|\\.|[()\[\]{}]|(?P<comma>,)|(?P<semicolon>;)|(?P<colon>:)"
)
_OPEN = ("(", "[", "{", "\\{", "\\begin", "\\lfloor", "\\lceil")
_CLOSE = (")", "]", "}", "\\}", "\\end", "\\rfloor", "\\rceil")
_RELATIONS = {
    "\\leqslant": "<=",
    "\\leq": "<=",
    "\\le": "<=",
    "\\geqslant": ">=",
    "\\geq": ">=",
    "\\ge": ">=",
    "\\lt": "<",
    "\\gt": ">",
    "\\neq": "!=",
    "\\ne": "!=",
    "\\in": "in",
    "\\approx": "approx",
}
_MIRROR = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}
_OR = re.compile(r" ?(?:,? ?\\(?:text|mathrm) ?\{ ?(?:or|and) ?\}|(?<= )(?:or|and)(?= )|\\lor(?![A-Za-z])) ?")
_AND = re.compile(r"(?<![A-Za-z])and(?![A-Za-z])")
_VARIABLE = re.compile(r"(?:[A-Za-z]|\\(?!pi\b|infty)[A-Za-z]+)(?: ?_ ?(?:[A-Za-z0-9]|\{ ?[A-Za-z0-9]+ ?\}))?'*")
# What may stand before "=" as a name: x, x_1, AB, \angle ABC, \text{Area}, f(x + 1), a(n); not the product x(y + 1).
_INDEX = r"(?: ?_ ?(?:[A-Za-z0-9]|\{[^{}]*\}))?'*"
_NAME = re.compile(
    r"(?:(?:m ?)?\\(?:angle|triangle|measuredangle) ?)?(?:"
    rf"[fghpqFGHPQ]{_INDEX} ?\([^()]*\)"
    rf"|(?:[A-Za-z]|\\(?!pi\b|infty|frac|sqrt)[a-zA-Z]+){_INDEX}(?: ?\([A-Za-z0-9, ]*\))?"
    r"|[A-Z]{2,3}|[A-Za-z]{3,20}|\|[A-Z]{1,2}\||\\frac ?\{[A-Z]{2}\} ?\{[A-Z]{2}\}"
    rf"|\\(?:text|mathrm|overline|mathbf|vec|operatorname) ?\{{[^{{}}]*\}}{_INDEX}(?: ?\([^()]*\))?)"
)
_NAMES = re.compile(r"\( ?[A-Za-z](?:_[0-9])?(?: ?, ?[A-Za-z](?:_[0-9])?)+ ?\)")
_FUNCTION = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc|log|ln|sqrt|exp)(?![a-z])")
_CHOICE = re.compile(r"\(? ?([A-Z]) ?(?:\)[.:]?|[.:])?")
_REALS = re.compile(r"\\mathbb ?\{? ?R ?\}?")
_MATRIX = re.compile(r"\\begin ?\{([pbvV]?matrix|smallmatrix|array)\} ?(?:\{[^{}]*\})?(.*)\\end ?\{\1\}", re.DOTALL)


def read(text: str) -> Form:
    """Read the text of an answer. Linear in its length, and bounded where more than a pass over it is needed.

    An answer without anything in it has the key "". Never raises: what cannot be read has its text as key.
    """
    text = plain(text)
    value = read_number(text)
    if value is not None:
        return number_form(value, text)
    if 0 < len(text) <= _MAX_LENGTH and not _HUGE.fullmatch(text):
        try:
            return _read(text, _MAX_DEPTH)
        except Unread:
            pass
    spelled = _IDLE_SPACE.sub("", re.sub(r"\{([0-9])\}(?![0-9 ])", r"\1", text))
    return Form(f"s:{spelled}" if spelled else "", "", (), True, text)


def _read(text: str, depth: int) -> Form:
    if depth == 0:
        raise Unread("too deep")
    text = without_wrapper(without_end(text.strip()))
    if choice := _CHOICE.fullmatch(text):
        text = choice[1]
    for reader in (read_words, read_time, read_base):
        form = reader(text)
        if form is not None:
            return form
    if _REALS.fullmatch(text):
        text = r"(-\infty, \infty)"
    text = _joined_by_commas(without_thousands(text))
    for separator in ("semicolon", "comma"):  # p = 5, q = 2; p = 7, q = 3
        items = _split(text, separator)
        if len(items) > 1:
            return _list(items, depth)
    items = _split(text, "cup")
    if len(items) > 1:
        return collection([form for item in items for form in _alternatives(item, depth)], text, distinct=True)
    form = _relation(text, depth)
    if form is not None:
        return form
    text = without_unit(text)
    value = read_number(text)
    if value is not None:
        return number_form(value, text)
    for reader in (_matrix, _bracket):
        form = reader(text, depth)
        if form is not None:
            return form
    ratio = _split(text, "colon")
    if len(ratio) > 1:
        return tuple_form("ratio", [_read(item, depth - 1) for item in ratio], text)
    if has_sign(text):
        return collection(_alternatives(text, depth), text, distinct=True)
    return expression_form(read_formula(text), text)


def _alternatives(text: str, depth: int) -> list[Form]:
    """Return one form, or with `\\pm` two."""
    if not has_sign(text):
        return [_read(text, depth - 1)]
    if "=" in text:
        name, _, text = text.partition("=")
        if not _NAME.fullmatch(name.strip()):
            raise Unread("an equation with two signs")
    text = without_unit(text.strip())
    return [expression_form(read_formula(text, sign), text) for sign in (1, -1)]


def _list(items: list[str], depth: int) -> Form:
    if len(items) > _MAX_ITEMS:
        raise Unread("too many items")
    text = ", ".join(items)
    sides = [[side.strip() for side in _split(item, "relation")] for item in items]
    named = {
        s[0]: i for s, i in zip(sides, items, strict=True) if len(s) == 2 and _VARIABLE.fullmatch(s[0]) and "=" in i
    }
    if len(named) == len(items):  # x = 2, y = 3
        return tuple_form("()", [_read(named[name], depth - 1) for name in sorted(named)], text)
    forms = [form for item in items for form in _alternatives(item, depth)]
    # As a set, but 1, 1, 2 is not 1, 2: multiplicities may be meant.
    return collection(forms, text, distinct=len({form.key for form in forms}) == len(forms))


def _bracket(text: str, depth: int) -> Form | None:
    match = re.match(r"\\?[{(\[]", text)
    closed = re.search(r"\\\}$|[)\]]$", text)
    if match is None or closed is None or closed.start() < match.end() or not _encloses(text):
        return None
    inner = text[match.end() : closed.start()].strip()
    kind = match[0][-1] + closed[0][-1]
    if kind == "{}":
        if not inner:
            return expression_form(symbol("emptyset"), text)
        if re.search(r":|\\mid(?![A-Za-z])|\|", inner):
            raise Unread("a set by its property")
        return collection(
            [f for item in _split(inner, "comma") for f in _alternatives(item, depth)], text, distinct=True
        )
    items = _split(inner, "semicolon" if ";" in inner else "comma")
    if kind not in ("()", "[]", "(]", "[)") or len(items) > _MAX_ITEMS:
        raise Unread("brackets")
    if len(items) == 1:
        return _read(items[0], depth - 1)
    return tuple_form(kind, [_read(item, depth - 1) for item in items], text)


def _encloses(text: str) -> bool:
    """Return whether the first bracket is closed by the last."""
    depth = 0
    for match in _PIECE.finditer(text):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if depth == 0:
            return match.end() == len(text)
    return False


def _matrix(text: str, depth: int) -> Form | None:
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    body = re.sub(r"\\\\ ?(?:\[[^\]]*\])? ?$", "", match[2].strip())
    rows = [row.split("&") for row in re.split(r"\\\\(?: ?\[[0-9.a-z]*\])?", body)]
    if len({len(row) for row in rows}) > 1 or len(rows) * len(rows[0]) > _MAX_ITEMS:
        raise Unread("a matrix with uneven rows")
    kind = "determinant" if match[1][0] in "vV" else "matrix"
    return tuple_form(f"{kind}{len(rows)}x", [_read(cell, depth - 1) for row in rows for cell in row], text)


def _joined_by_commas(text: str) -> str:
    """Write "or" and "and" between answers as a comma. "and" between inequalities means both at once."""
    if _OR.search(text) is None:
        return text
    if _AND.search(text) and re.search(r"[<>]|\\[lg]e", text):
        raise Unread("inequalities at once")
    return re.sub(r",\s*,", ",", _OR.sub(", ", text))


def _split(text: str, kind: str) -> list[str]:
    """Split at the separators of a kind that stand outside of all brackets."""
    items, start, depth = [], 0, 0
    for match in _PIECE.finditer(text):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if depth == 0 and match.lastgroup == kind:
            items.append(text[start : match.start()].strip())
            start = match.end()
    return [*items, text[start:].strip()]


def _relation(text: str, depth: int) -> Form | None:
    """Read an equation, an inequality, or `x \\in ...`; None where there is no relation."""
    sides = _split(text, "relation")
    if len(sides) == 1:
        return None
    signs, level = [], 0
    for match in _PIECE.finditer(text):
        level += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if level == 0 and match.lastgroup == "relation":
            signs.append(_RELATIONS.get(match[0], match[0]))
    named = _is_name(sides[0])
    if signs[0] == "in" and len(signs) == 1 and named:
        return _read(sides[1], depth - 1)
    if signs == ["approx"]:
        return _read(sides[1] if named else sides[0], depth - 1)
    if signs[-1] == "approx" and set(signs[:-1]) == {"="}:
        sides, signs = sides[:-1], signs[:-1]
    if set(signs) == {"="}:
        return _equation(sides, text, depth)
    return _inequality(sides, signs, text)


def _is_name(text: str) -> bool:
    if _FUNCTION.match(text):
        return False
    if _NAMES.fullmatch(text):
        return True
    return all(_NAME.fullmatch(part.strip()) for part in text.split(":"))  # AB:CD = 3:4


def _equation(sides: list[str], text: str, depth: int) -> Form:
    if _is_name(sides[0]):
        sides = sides[1:]
    elif (
        len(sides) == 2
        and _VARIABLE.fullmatch(sides[1])
        and read_formula(without_unit(sides[0])).constant() is not None
    ):
        sides = sides[:1]  # 5 = x
    forms = [_read(side, depth - 1) for side in sides]
    if len({form.key for form in forms}) == 1:  # also 1/2 = 0.5
        return forms[-1]
    if len(forms) > 2:
        raise Unread("a chain of equations")
    difference = _monic(*(read_formula(side) for side in sides))[0]
    return Form(f"q:{difference.key()}=0", "equation", (), True, text)


def _monic(left: Expression, right: Expression) -> tuple[Expression, bool]:
    """Return left - right divided by its first factor, and whether that is negative."""
    difference = add(left, negative(right))
    if not difference.terms:
        raise Unread("always true")
    first = difference.terms[max(difference.terms)]
    return multiply(number(1 / first), difference), first < 0


def _inequality(sides: list[str], signs: list[str], text: str) -> Form:
    """`a < x < b` is an interval; other inequalities are `expression > 0`, apart from a factor."""
    if any(sign not in _MIRROR for sign in signs) or len(signs) > 2:
        raise Unread("relations")
    if len(signs) == 2 and signs[0][0] == signs[1][0] == ">":
        sides, signs = sides[::-1], [_MIRROR[sign] for sign in signs[::-1]]
    if len(signs) == 2:
        if not (signs[0][0] == signs[1][0] == "<" and _VARIABLE.fullmatch(sides[1])):
            raise Unread("relations")
        return _interval(sides[0], signs[0] == "<=", sides[2], signs[1] == "<=", text)
    [sign] = signs
    if _VARIABLE.fullmatch(sides[1]) and not _VARIABLE.fullmatch(sides[0]):
        sides, sign = sides[::-1], _MIRROR[sign]
    if _VARIABLE.fullmatch(sides[0]):
        if sign == "!=":
            below = _interval("-\\infty", False, sides[1], False, text)
            above = _interval(sides[1], False, "\\infty", False, text)
            return collection([below, above], text, distinct=True)
        if sign[0] == "<":
            return _interval("-\\infty", False, sides[1], sign == "<=", text)
        return _interval(sides[1], sign == ">=", "\\infty", False, text)
    difference, flipped = _monic(*(read_formula(side) for side in sides))
    sign = _MIRROR[sign] if flipped else sign
    return Form(f"q:{difference.key()}{sign}0", "inequality", (), True, text)


def _interval(low: str, closed: bool, high: str, closed_above: bool, text: str) -> Form:
    ends = [expression_form(read_formula(without_unit(end)), end) for end in (low, high)]
    return tuple_form(f"{'[' if closed else '('}{']' if closed_above else ')'}", ends, text)
