"""Read answers that are no formula: words, times of day, numbers with a base, remainders."""

import re
from fractions import Fraction

from ttrl_jax.reward.algebra import number, symbol
from ttrl_jax.reward.form import Form, expression_form, fixed_form, number_form
from ttrl_jax.reward.formula import NAMES, read_formula

_BASE = re.compile(
    r"\(? ?(?:\\(?:text|mathrm) ?\{ ?)?([0-9A-Za-z]*[0-9A-F]) ?\}? ?\)? ?"
    r"(?:_ ?(?:\{ ?)?\(?(?:\\text ?\{ ?)?(?:base ?\}? ?)?|(?:\\text ?\{)? ?\(? ?base[ -]?\}? ?)(\w+)[ )}]*"
)
_BASES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_LATIN = {"binary": 2, "ternary": 3, "octal": 8, "decimal": 10, "hex": 16, "hexadecimal": 16}
_TEXT = re.compile(r"\\(?:text|mathrm) ?\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:['.:!? -]+[^\W\d_]+)*")
_NO_WORDS = {name.lower() for name in NAMES} | {"and"}  # pi, sqrt; "A and B" are two letters
_TIME = re.compile(r"([0-9]{1,2})(?: ?: ?([0-9]{2}))? ?([ap])\.? ?m\.?", re.IGNORECASE)
_REMAINDER = re.compile(r"(?:[A-Za-z] ?\\equiv ?)?(.+?) ?(?:\( ?)?\\pmod ?(.+?)(?: ?\))?")
# Words that stand for something else, without their article.
_NOTHING = set(
    "empty set;no solution;no solutions;no real solution;no real solutions;there is no solution;"
    "there are no solutions".split(";")
)
_ALL = set("all real numbers;all reals;all real values;reals;real numbers;set of all real numbers;real line".split(";"))
_SAID_OTHERWISE = {"dne": "does not exist", "limit does not exist": "does not exist", "undef": "undefined"}
REALS = r"(-\infty, \infty)"


def read_words(text: str) -> Form | str | None:
    """Read words, with or without `\\text`; None for anything else, and a formula where words name one.

    Letters are words rather than a product of variables if three or more stand together: `east` is one, `2xyz` is not.
    Case, an article and the marks around them do not count.
    """
    flat = " ".join(_TEXT.sub(r" \1 ", text).split()).strip(" .;:!?")
    if not _WORDS.fullmatch(flat):
        return None
    words = re.findall(r"[^\W\d_]+", flat)
    if not {"and", "or"}.isdisjoint(words):
        return None  # several
    long = any(len(word) > 2 and word.lower() not in _NO_WORDS or not word.isascii() for word in words)
    flat = " ".join(re.sub(r"[.:!?]", " ", flat.casefold()).split())
    flat = re.sub("^(?:the|an?) (?=.)", "", flat)
    if not long and flat != "no":
        return None
    if flat in _ALL:
        return REALS
    if flat in _NOTHING:
        return expression_form(symbol(r"\emptyset"))
    return fixed_form(f"w:{_SAID_OTHERWISE.get(flat, flat)}", "words")


def read_time(text: str) -> Form | None:
    """Read a time of day with a.m. or p.m.; None for anything else."""
    flat = " ".join(_TEXT.sub(r" \1 ", text).split())
    match = _TIME.fullmatch(flat)
    if match is None:
        return None
    return fixed_form(f"t:{int(match[1])}:{match[2] or '00'} {match[3].lower()}m", "time")


def read_base(text: str) -> Form | None:
    """Read a whole number with its base, as `1011_2`, `1011_{two}` or `1011 base 2`; None for anything else.

    It may stand beside its bare digits in a ballot.
    """
    match = _BASE.fullmatch(text)
    if match is None:
        return None
    name = match[2].lower()
    base = _BASES.index(name) if name in _BASES else int(name) if name.isdecimal() and len(name) < 3 else 0
    base = base or _LATIN.get(name, 0)
    digits = [int(c, 36) for c in match[1]]
    if not 2 <= base <= 36 or max(digits) >= base:
        return None
    if not any(map(str.isdigit, match[1])) and (base < 11 or not match[1].isupper()):
        return None
    if base == 10:
        return number_form(Fraction(int(match[1])))
    written = match[1].upper().lstrip("0") or "0"
    bare = (f"n:{written}", f"n:{int(written, base)}") if written.isdigit() else ()
    return fixed_form(f"b:{written}_{base}", "base", bare)


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
