"""Read an answer as a `Form`: its canonical key, and what is needed to tell it from others without any algebra.

What is alike (the tests hold a list with reasons):
  numbers       `025` = 25, `1{,}234` = `1 234`, `\\dfrac12` = 0.5, `3\\frac12` = 7/2, `1.5e3`; equality is exact
  percent       `50\\%` = `50 percent` = 1/2, and in a ballot without 1/2 it is 50 (`ballot.py`)
  degrees       `90^\\circ` = 90
  units         dropped, and so are currencies: `5 cm` = `5\\text{ m}` = `\\$5` = 5; what is a unit, `units.py` lists
  names         `x = 5` = `f(2) = 5` = `x \\in \\{5\\}` = `m + n = 5` = `x = 2 + 3 = 5` = 5, but `x = 5` beside `y = 5`
                are apart (`ballot.py`); `x = 2, y = 3` and `(x, y) = (2, 3)` = `(2, 3)`, by name; `x_1 = 2, x_2 = 3`
                are roots
  lists, sets   in any order; a list is a set unless it has an item twice: `1, 2` = `\\{2, 1\\}`; `\\{5\\}` is 5,
                `5, 5` is not; `\\{1\\} \\cup \\{2\\}` = `\\{1, 2\\}`
  `\\pm`         two answers: `1 \\pm 2` = `3, -1`, `(0, \\pm 3)` = `(0, 3), (0, -3)`; two `\\pm` are four
  `\\cup`, or    a set of intervals; "and" is what they share
  intervals     `x > 5` = `5 < x` = `(5, \\infty)` = `\\{x : x > 5\\}`; `(1, 2)` is one key as a point and as an
                interval, `[1, 2]` another
  matrices      alike with any brackets and as arrays; a column is a point; bars are a determinant
  equations     apart from sides, order and a factor
  functions     `f(x)` of f, g, h, F, G, H, P, Q, T is a function of x, never a product
  bases         `1011_2` is no 11; in a ballot it may be 1011 (`ballot.py`); `_{10}` is dropped
  ratios        `6:8` = `3:4` = 3/4, unless it may be a time
  remainders    `x \\equiv 10 \\pmod 7` = `3 \\pmod 7`
  words         case, an article, `\\text` and punctuation do not count; of several, the order is free
  letters       `(B)` and `\\text{B.}` are `B`; `(B) 5` has a letter and a value (`ballot.py`)
  times         `6:00 PM` = `6 \\text{ p.m.}`
"""

import re
from dataclasses import replace
from fractions import Fraction
from itertools import product

from ttrl_jax.reward.algebra import Unread, symbol
from ttrl_jax.reward.equations import QUANTITY, conclusion, equation, is_name
from ttrl_jax.reward.form import (
    Form,
    bracketed,
    collection,
    expression_form,
    fixed_form,
    is_interval,
    number_form,
    tuple_form,
    union,
    vector,
)
from ttrl_jax.reward.formula import read_formula
from ttrl_jax.reward.regions import LETTER, VARIABLE, inequality, shared
from ttrl_jax.reward.spelling import plain, read_number, without_end, without_thousands, without_wrapper
from ttrl_jax.reward.structure import encloses, joined_by_commas, relations, split
from ttrl_jax.reward.units import without_unit
from ttrl_jax.reward.words import REALS, read_base, read_remainder, read_time, read_words

_MAX_LENGTH = 1_000  # characters; a longer answer that is no number is compared as text
_MAX_DEPTH = 4  # tuples in sets in lists ...
_MAX_ITEMS = 64
_MAX_SIGNS = 4  # \\pm of an answer, each of which doubles it

# "1 2" is not "12": a space between two digits means something, and so does one that ends a macro's name.
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])|(?<=[0-9]) (?![0-9])|(?<![0-9A-Za-z])(?<=[A-Za-z]) ")
_HUGE = re.compile(r"[+-]?[0-9.,]+[eE][+-]?[0-9]+")  # a power of ten, but not one that was read: not 1 times e - 1001
_SIGN = re.compile(r"\\([pm])[mp](?![A-Za-z])")
_CHOICE = re.compile(r"\(? ?([A-Z]) ?(?:\)[.:]?|[.:])?")
_LETTERED = re.compile(
    r"(?:\\(?:text|mathrm) ?\{ ?(?:\(([A-J])\)[.:]?|([A-J])[).:]) ?\}|\(([A-J])\)[.:]?"
    r"|([A-J])\)|([A-J])[.:](?= )) ?(?=[^-+*/^_=!,;(. ])(.+)",
    re.DOTALL,
)
_REALS = re.compile(r"\\mathbb ?\{? ?R ?\}?")
_MATRIX = re.compile(
    r"\\begin ?\{([pbvV]?matrix|smallmatrix|array|cases)\} ?(?:\{[^{}]*\})?(.*)\\end ?\{\1\}", re.DOTALL
)
_BUILDER = re.compile(
    r"(\(?[A-Za-z](?: ?, ?[A-Za-z])*\)?)(?: ?\\in ?\\mathbb ?\{? ?[RZNQ] ?\}?(?: ?\^ ?[23])?)?"
    r" ?(?::|\\mid(?![A-Za-z])|\|) ?(.+)"
)
_TAIL = re.compile(
    r"(.+?) ?(?:,|;|\(|\\(?:text|mathrm) ?\{ ?,? ?(?:for|where)[a-z ]*\}|(?:for|where)(?: any| all| some)?) ?"
    r"(?:\\(?:text|mathrm) ?\{ ?(?:for|where)[a-z ]*\}|\\forall|(?:for|where)(?: any| all| some)?)? ?"
    r"([a-z]) ?(?:\\in ?\\mathbb ?\{? ?[ZN] ?\}?(?: ?[_^] ?(?:\{[^{}]*\}|[+*0]))?"
    r"|(?:\\text ?\{)? ?(?:is )?(?:an? |any )?integers?\}?) ?\)?"
)
_POINT = re.compile(r"[ABD-Z](?:_[0-9])? ?(?==? ?\()=? ?")
_COUNTED = re.compile(r"[a-z] ?\\(?:text|mathrm)(?![a-z])")  # n\text{ ways}
_MULTIPLES = re.compile(r"(?=.*\\pi(?![a-z])).*(?<![\\A-Za-z])([km])(?![A-Za-z]).*")
_LONE_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?) [mgshL]")  # 5 m may be five metres
_OF = re.compile(r"[A-Za-z] ?\( ?([a-z]) ?\)")
_CLOCK = re.compile(r"[0-9]{1,2} ?: ?[0-5][0-9]")


def read(text: str) -> Form:
    """Read the text of an answer. Linear in its length, and bounded where more than a pass over it is needed.

    An answer without anything in it has the key "". Never raises: what cannot be read has its text as key.
    """
    text = plain(text)
    value = read_number(text)
    if value is not None:
        return number_form(value)
    if 0 < len(text) <= _MAX_LENGTH and not _HUGE.fullmatch(text):
        try:
            return _answer(text)
        except (Unread, ArithmeticError, LookupError, RecursionError, ValueError):
            return _as_spelled(text)
    return _as_spelled(text)


def _as_spelled(text: str) -> Form:
    """The form of odd text, which is compared as it is spelled."""
    spelled = _IDLE_SPACE.sub("", re.sub(r"\{([0-9])\}(?![0-9 ])", r"\1", text))
    return Form(f"s:{spelled}" if spelled else "", "", (), True, spelled)


def _answer(text: str) -> Form:
    """Read an answer with what may stand around its value: a letter of a choice, a per cent sign."""
    if match := _LETTERED.fullmatch(text):
        letter = next(filter(None, match.groups()))
        try:
            value = _read(match[6], _MAX_DEPTH)
        except Unread:
            value = read(match[6])
        return fixed_form(f"c:{letter}:{value.key}", "choice", (f"e:{letter}", value.key))
    form = _read(text, _MAX_DEPTH)
    if form.shape == "number" and ("%" in text or "p" in text) and without_unit(text).endswith("%"):
        return replace(form, beside=(f"n:{form.parts[0].constant() * 100}",))
    return form


def _read(text: str, depth: int) -> Form:
    if depth == 0:
        raise Unread("too deep")
    text = without_wrapper(without_end(text.strip()))
    if (value := read_number(text)) is not None:
        return number_form(value)
    if choice := _CHOICE.fullmatch(text):
        text = choice[1]
    text = without_unit(text) if _COUNTED.match(text) else text
    for reader in (read_words, read_time, read_base):
        form = reader(text)
        if isinstance(form, Form):
            return form
        text = form or text
    if _REALS.fullmatch(text):
        text = REALS
    if _SIGN.search(text):
        return _alternatives(text, depth)
    if ("\\in" in text or "integer" in text) and (tail := _TAIL.fullmatch(text)):
        if tail[2] in tail[1]:
            return _family(tail[1], tail[2], "n", depth)
    text, joined = joined_by_commas(without_thousands(text))
    for separator in ("semicolon", "comma"):  # p = 5, q = 2; p = 7, q = 3
        items = split(text, separator)
        if len(items) > 1:
            return _list(items, joined, depth)
    items = split(text, "cup")
    if len(items) > 1:
        return _union([_read(item, depth - 1) for item in items])
    form = _relation(text, depth)
    if form is not None:
        return form
    whole, text = text, without_unit(text)
    if text != whole and (value := read_number(text)) is not None:
        return number_form(value)
    if remainder := read_remainder(text):
        return remainder
    for reader in (_matrix, _bracket, _ratio):
        form = reader(text, depth)
        if form is not None:
            return form
    if text.endswith("%") and (value := read_number(text[:-1].rstrip())) is not None:
        return number_form(value / 100)
    form = vector(read_formula(text))
    if "\\pi" in text and (parameter := _MULTIPLES.fullmatch(text)):  # k\pi without "k is an integer"
        letters = set(LETTER.findall(form.text)) - {"e", "i"}
        usual = expression_form(read_formula(_renamed(text, parameter[1], "n")))
        return replace(usual, beside=(form.key,)) if letters == {parameter[1]} else form
    if bare := _LONE_UNIT.fullmatch(text):
        return replace(form, beside=(number_form(Fraction(bare[1])).key,))
    return form


def _alternatives(text: str, depth: int) -> Form:
    """Read `\\pm` as two answers. Several are free of one another, unless there is a `\\mp` among them."""
    signs = _SIGN.findall(text)
    if len(signs) > _MAX_SIGNS:
        raise Unread("too many signs")
    first, other = {"p": "+", "m": "-"}, {"p": "-", "m": "+"}
    ways = (
        [[way] * len(signs) for way in (first, other)] if "m" in signs else product((first, other), repeat=len(signs))
    )
    forms = []
    for way in ways:
        chosen = iter(way)
        forms += _flat(_read(_SIGN.sub(lambda match, chosen=chosen: next(chosen)[match[1]], text), depth - 1))
    return collection(forms, distinct=True)


def _flat(form: Form) -> list[Form]:
    """What is in a set."""
    return list(form.items) or [form]


def _each(items: list[str], depth: int) -> list[Form]:
    """Read what stands between commas; with `\\pm` it is several."""
    forms = []
    for item in items:
        form = _read(item, depth - 1)
        forms += _flat(form) if _SIGN.search(item) else [form]
    return forms


def _renamed(text: str, letter: str, usual: str) -> str:
    """Write another letter for a parameter, whose name does not count."""
    return re.sub(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])|(?<=[0-9]){letter}(?=\\)", f"{usual} ", text)


def _family(text: str, letter: str, usual: str, depth: int) -> Form:
    """Read a formula of a parameter: it may stand beside the same in its own letter."""
    form, own = _read(_renamed(text, letter, usual), depth - 1), _read(text, depth - 1)
    return form if form.key == own.key else replace(form, beside=(own.key,))


def _union(forms: list[Form]) -> Form:
    items = [item for form in forms for item in _flat(form)]
    return union(items) if any(map(is_interval, items)) else collection(items, distinct=True)


def _list(items: list[str], joined: str, depth: int) -> Form:
    if len(items) > _MAX_ITEMS:
        raise Unread("too many items")
    found = [relations(item) for item in items]
    named = {sides[0]: sides[1] for sides, signs in found if signs == ["="] and VARIABLE.fullmatch(sides[0])}
    if len(named) == len(items):  # x = 2, y = 3, or the roots x_1 = 2, x_2 = 3
        forms = [_read(named[name], depth - 1) for name in sorted(named)]
        roots = len({name.partition("_")[0] for name in named}) == 1
        return collection(forms, distinct=False) if roots else bracketed("()", forms)
    forms = _each(items, depth)
    unsolved = [signs for _, signs in found if signs and set(signs) <= {"<", "<=", ">", ">=", "!="}]
    if len(unsolved) == len(items):
        one = len({form.name for form in forms}) == 1 and forms[0].name
        both = shared(forms) if one and joined != "or" else None
        if both is None and not (one and all(map(_is_region, forms))):
            raise Unread("inequalities at once")
        return replace(_union(forms) if both is None else both, name=forms[0].name)
    if unsolved and joined == "and":
        raise Unread("inequalities at once")
    if all(map(is_interval, forms)) and any("[" in form.shape or "infty" in form.text for form in forms):
        return _union(forms)
    return collection(forms, distinct=joined == "or")


def _is_region(form: Form) -> bool:
    return is_interval(form) or form.shape.startswith("union")


def _bracket(text: str, depth: int) -> Form | None:
    text = _POINT.sub("", text) if _POINT.match(text) and "," in text else text
    match = re.match(r"\\?[{(\[]|\]", text)
    closed = re.search(r"\\\}$|[)\]]$|\[$", text)
    if match is None or closed is None or closed.start() < match.end():
        return None
    inner = text[match.end() : closed.start()].strip()
    if match[0] == "]" or closed[0] == "[":  # ]1,2[ as in France
        text = f"{'(' if match[0] == ']' else match[0]}{inner}{')' if closed[0] == '[' else closed[0]}"
        match, closed = re.match(r".", text), re.search(r".$", text)
    if not encloses(text):
        return None
    kind = match[0][-1] + closed[0][-1]
    if kind == "{}":
        return _set(inner, depth)
    items = split(inner, "semicolon" if ";" in inner else "comma")
    if kind not in ("()", "[]", "(]", "[)") or len(items) > _MAX_ITEMS:
        raise Unread("brackets")
    if len(items) == 1:
        return _read(items[0], depth - 1)
    return bracketed(kind, [_read(item, depth - 1) for item in items])


def _set(inner: str, depth: int) -> Form:
    if not inner:
        return expression_form(symbol(r"\emptyset"))
    if builder := _BUILDER.fullmatch(inner):
        sides, signs = relations(builder[2])
        form = equation(*map(read_formula, sides)) if signs == ["="] else _read(builder[2], depth - 1)
        if _is_region(form) and form.name in ("", builder[1]):
            return replace(form, name="")
        if form.shape in ("equation", "inequality"):
            return fixed_form(f"p:{re.sub(' ', '', builder[1])}|{form.key}", "property")
        raise Unread("a set by its property")
    if re.search(r":|\\mid(?![A-Za-z])", inner):
        raise Unread("a set by its property")
    return collection(_each(split(inner, "comma"), depth), distinct=True)


def _matrix(text: str, depth: int) -> Form | None:
    match = _MATRIX.fullmatch(text) if text.startswith("\\begin") else None
    if match is None:
        return None
    body = re.sub(r"\\\\ ?(?:\[[^\]]*\])? ?$", "", match[2].strip())
    rows = [row.split("&") for row in re.split(r"\\\\(?: ?\[[0-9.a-z]*\])?", body)]
    if len({len(row) for row in rows}) > 1 or len(rows) * len(rows[0]) > _MAX_ITEMS:
        raise Unread("a matrix with uneven rows")
    if match[1] == "cases":
        if len(rows[0]) > 1:
            raise Unread("a function by cases")
        return _list([row[0].strip(" ,") for row in rows], "and", depth)
    cells = [[_read(cell, depth - 1) for cell in row] for row in rows]
    bars = match[1][0] in "vV"
    if len(rows) > 1 and len(rows[0]) == 1 and not bars:
        return bracketed("()", [cell for [cell] in cells])
    kind, name = ("determinant", "vmatrix") if bars else ("matrix", "pmatrix")
    written = r" \\ ".join(" & ".join(cell.text for cell in row) for row in cells)
    flat = [cell for row in cells for cell in row]
    return tuple_form(f"{kind}{len(rows)}x", flat, rf"\begin{{{name}}}{written}\end{{{name}}}")


def _ratio(text: str, depth: int) -> Form | None:
    """Read 6:8 as 3:4, which is 3/4, unless it may be a time."""
    if ":" not in text and "to" not in text:
        return None
    items = split(re.sub(r" ?\\(?:text|mathrm) ?\{ ?to ?\} ?|(?<=[0-9]) to (?=[0-9])", ":", text), "colon")
    if len(items) == 1:
        return None
    forms = [_read(item, depth - 1) for item in items]
    rational = [form.parts[0].constant() if form.shape == "number" else None for form in forms]
    if _CLOCK.fullmatch(text) or None in rational or 0 in rational:
        return tuple_form("ratio", forms, ":".join(form.text for form in forms))
    if len(forms) == 2:
        return number_form(rational[0] / rational[1])
    forms = [number_form(value / rational[0]) for value in rational]
    return tuple_form("ratio", forms, ":".join(form.text for form in forms))


def _relation(text: str, depth: int) -> Form | None:
    """Read an equation, an inequality, or `x \\in ...`; None where there is no relation."""
    sides, signs = relations(text)
    if not signs:
        return None
    named = is_name(sides[0])
    if signs == ["in"] and named:
        return _named(sides[0], _read(sides[1], depth - 1))
    if signs == ["approx"]:
        return _read(sides[1] if named else sides[0], depth - 1)
    if signs[-1] == "approx" and set(signs[:-1]) == {"="}:
        sides, signs = sides[:-1], signs[:-1]
    if set(signs) == {"="}:
        return _equation(sides, depth)
    form, name = inequality(sides, signs)
    return _named(name, form)


def _named(name: str, form: Form) -> Form:
    return replace(form, name=re.sub(r"[ {}]", "", name)) if VARIABLE.fullmatch(name) else form


def _equation(sides: list[str], depth: int) -> Form:
    left, named = sides[0], is_name(sides[0])
    if named:
        sides = sides[1:]
    elif len(sides) == 2 and VARIABLE.fullmatch(sides[1]) and _constant(left) is not None:
        left, sides = sides[1], sides[:1]  # 5 = x
    elif len(sides) == 2 and QUANTITY.fullmatch(left) and _constant(sides[1]):  # not 0
        sides = sides[1:]
    *middle, last = sides
    forms = [*(_side(side, depth) for side in middle), _read(last, depth - 1)]
    if len({form.key for form in forms}) == 1:  # also 1/2 = 0.5
        form = _named(left, forms[-1])
        if (argument := _OF.fullmatch(left)) and argument[1] != "x" and form.shape == "expression":
            return _family(sides[-1], argument[1], "x", depth)
        if form.shape == "expression" and form.name:  # y = -2x may be the line 2x + y = 0
            form = replace(form, beside=(equation(symbol(form.name), form.parts[0]).key,))
        return form
    if (form := conclusion(sides, forms, named=named)) is not None:
        return _named(left, form)
    if len(forms) > 2:
        raise Unread("a chain of equations")
    return equation(*(read_formula(side) for side in sides))


def _side(text: str, depth: int) -> Form:
    """A side of a chain that may not be the answer: what cannot be read is as it is spelled."""
    try:
        return _read(text, depth - 1)
    except Unread:
        return _as_spelled(text)


def _constant(text: str) -> Fraction | None:
    return read_formula(without_unit(text)).constant()
