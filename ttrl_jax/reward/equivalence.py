"""Decide which answers are the same answer.

`classes` is the one door: the vote, the reward and the audit all ask it, so there is a single notion of
sameness. An answer has a canonical key: a number if it can be read as one, otherwise its text without what
changes only the look. Units, percent signs and degrees stay: `50\\%` is not `50`. Text is never evaluated.
"""

import hashlib
import re
from collections.abc import Sequence
from fractions import Fraction

from ttrl_jax.reward.extract import Answer, closing_brace

_MAX_NUMBER_LENGTH = 2_000  # characters; a longer text is not read as a number
_MAX_DIGITS = 1_000  # digits in the whole number; more is compared as text
_MAX_EXPONENT = 1_000  # power of ten, either sign; more is compared as text
_MAX_KEY_LENGTH = 256  # characters; a longer key is replaced by its digest
_MAX_WRAPPERS = 4  # nested \text{...} taken off; each costs a pass over the text

# One pass, so that the second back-slash of a line break `\\` is never taken for the start of `\,`.
_LOOK = re.compile(
    r"(?P<keep>\\\\)"
    r"|(?P<comma>,\s*\\!\s*)"  # 10,\!080: the usual way to write a thousands comma
    r"|(?P<frac>\\[dt]frac(?![A-Za-z]))"
    r"|(?P<space>\s+|\\[;:\s]|\\q?quad(?![A-Za-z]))"
    r"|(?P<minus>\u2212)"
    r"|(?P<drop>\\[,!]|\\(?:left|right)(?![A-Za-z])|\\?\$|\\[()\[\]])"
)
_LOOK_BECOMES = {"keep": "\\\\", "comma": ",", "frac": "\\frac", "space": " ", "minus": "-", "drop": ""}
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox) ?\{")
# "1 2" is not "12": a space between two digits means something, any other does not.
_IDLE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")

# A decimal comma (0,123) is no thousands comma, hence no leading zero in the grouped form.
_UNSIGNED = r"(?:(?:[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_SIGNED = rf"[+-]? ?{_UNSIGNED}"
_POWER = r"[eE](?P<e>[+-]?[0-9]+)| ?\\(?:times|cdot) ?10 ?\^ ?(?:\{ ?(?P<power>[+-]?[0-9]+) ?\}|(?P<digit>[0-9]))"
_DECIMAL = re.compile(rf"(?P<number>{_SIGNED})(?:{_POWER})?")
_SLASH = re.compile(rf"(?P<sign>)(?P<above>{_SIGNED}) ?/ ?(?P<below>{_SIGNED})")
_FRAC = re.compile(
    rf"(?P<sign>[+-]?) ?\\frac ?(?P<above>\{{ ?{_SIGNED} ?\}}|[0-9]) ?(?P<below>\{{ ?{_SIGNED} ?\}}|[0-9])"
)


def key(answer: Answer) -> str:
    """Return the canonical key: `n:` and an exact fraction, or `s:` and the normalised text.

    Numbers: sign, leading zeros, decimals, thousands commas, a/b, `\\frac`, powers of ten. `-0` is `0`, `012`
    is `12`, `142.0` is `142`. A comma with a space or brackets (`1, 234`, `(1,234)`) is a list, kept as text.
    Linear time; a long key is replaced by its digest.
    """
    text = _plain(answer.text)
    number = _number(text)
    if number is not None:
        return _bounded("n:", str(number))
    return _bounded("s:", _IDLE_SPACE.sub("", text))


def classes(answers: Sequence[Answer | None]) -> list[int | None]:
    """Return the class of each answer: 0, 1, ... in order of first appearance.

    None stays None, and an answer in which nothing is left without its spacing (`\\boxed{\\,}`) becomes None.
    """
    ids: dict[str, int] = {}
    result: list[int | None] = []
    for answer in answers:
        name = "s:" if answer is None else key(answer)
        result.append(None if name == "s:" else ids.setdefault(name, len(ids)))
    return result


def _plain(text: str) -> str:
    """Take off what changes only the look: spacing, `$`, `\\left`, a `\\text{...}` around all, the period."""
    text = _LOOK.sub(lambda match: _LOOK_BECOMES[match.lastgroup or ""], text)
    text = _without_period(" ".join(text.split()))
    for _ in range(_MAX_WRAPPERS):
        opening = _WRAPPER.match(text)
        if opening is None or closing_brace(text, opening.end()) != len(text) - 1:
            break
        text = _without_period(text[opening.end() : -1].strip())
    return text


def _without_period(text: str) -> str:
    # 0.333... goes on, it is not 0.333
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def _number(text: str) -> Fraction | None:
    if len(text) > _MAX_NUMBER_LENGTH or sum(map(str.isdigit, text)) > _MAX_DIGITS:
        return None
    if match := _DECIMAL.fullmatch(text):
        exponent = int(match["e"] or match["power"] or match["digit"] or 0)
        return None if abs(exponent) > _MAX_EXPONENT else _decimal(match["number"]) * Fraction(10) ** exponent
    if match := _SLASH.fullmatch(text) or _FRAC.fullmatch(text):
        above, below = _decimal(match["above"]), _decimal(match["below"])
        if below == 0:
            return None
        return -above / below if match["sign"] == "-" else above / below
    return None


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[^0-9.+-]", "", text))  # without commas, braces and spaces


def _bounded(kind: str, body: str) -> str:
    if len(body) <= _MAX_KEY_LENGTH:
        return kind + body
    # Lone surrogates can come out of a byte-level tokenizer; they are kept apart, not refused.
    return f"{kind}sha256:{hashlib.sha256(body.encode('utf-8', 'surrogatepass')).hexdigest()}"
