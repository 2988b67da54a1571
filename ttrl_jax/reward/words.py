"""Read answers that are no formula: words, times of day, numbers with a base."""

import re
from fractions import Fraction

from ttrl_jax.reward.form import Form, number_form
from ttrl_jax.reward.formula import NAMES

_BASE = re.compile(
    r"([0-9A-Za-z]*[0-9A-F]) ?(?:_ ?(?:\{ ?)?(?:\\text ?\{ ?)?|(?:\\text ?\{)? ?\(? ?base[ -]?\}? ?)(\w+)[ )}]*"
)
_BASES = "zero one two three four five six seven eight nine ten eleven twelve".split()
_TEXT = re.compile(r"\\(?:text|mathrm) ?\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:['.,:;!? -]+[^\W\d_]+)*")
_NO_WORDS = {name.lower() for name in NAMES} | {"and"}  # pi, sqrt; "A and B" are two letters
_TIME = re.compile(r"([0-9]{1,2})(?: ?: ?([0-9]{2}))? ?([ap])\.? ?m\.?", re.IGNORECASE)


def read_words(text: str) -> Form | None:
    """Read words, with or without `\\text`; None for anything else.

    Letters are words rather than a product of variables if three or more stand together: `east` is one, `2xyz` is not.
    """
    flat = " ".join(_TEXT.sub(r" \1 ", text).split()).strip(" .,;:!?()")
    if not _WORDS.fullmatch(flat):
        return None
    words = re.findall(r"[^\W\d_]+", flat)
    long = any(len(word) > 2 and word.lower() not in _NO_WORDS or not word.isascii() for word in words)
    if not long and " ".join(words).casefold() != "no":
        return None
    items = {_spelled(item) for item in re.split(r"[,;]|\band\b", flat.casefold())} - {""}
    return Form(f"w:{','.join(sorted(items))}", "words", (), True, text)


def _spelled(words: str) -> str:
    words = " ".join(re.sub(r"[.:!?]", " ", words).split())
    return re.sub("^(?:the|an?) (?=.)", "", words)


def read_time(text: str) -> Form | None:
    """Read a time of day with a.m. or p.m.; None for anything else."""
    flat = " ".join(_TEXT.sub(r" \1 ", text).split())
    match = _TIME.fullmatch(flat)
    if match is None:
        return None
    return Form(f"t:{int(match[1])}:{match[2] or '00'} {match[3].lower()}m", "time", (), True, text)


def read_base(text: str) -> Form | None:
    """Read a whole number with its base, as `1011_2`, `1011_{two}` or `1011 base 2`; None for anything else."""
    match = _BASE.fullmatch(text)
    if match is None:
        return None
    name = match[2].lower()
    base = _BASES.index(name) if name in _BASES else int(name) if name.isdecimal() and len(name) < 3 else 0
    digits = [int(c, 36) for c in match[1]]
    if not 2 <= base <= 36 or max(digits) >= base or not any(map(str.isdigit, match[1])):
        return None
    if base == 10:
        return number_form(Fraction(int(match[1])), text)
    return Form(f"b:{match[1].upper().lstrip('0') or '0'}_{base}", "base", (), True, text)
