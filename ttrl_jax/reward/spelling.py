"""Take off what changes only the look of an answer: spacing, brackets' sizes, fonts, currency signs, units."""

import re
import unicodedata
from fractions import Fraction

from ttrl_jax.reward.extract import closing_brace
from ttrl_jax.reward.formula import NAMES

_MAX_WRAPPERS = 4  # nested \text{...} taken off; each costs a pass over the text
_MAX_NUMBER_LENGTH = 2_000  # characters; a longer text is not read as a number
_MAX_DIGITS = 1_000  # digits in the whole number; more is compared as text
_MAX_EXPONENT = 1_000  # power of ten, either sign; more is compared as text

# One pass, so that the second back-slash of a line break `\\` is never taken for the start of `\,`.
_LOOK = re.compile(
    r"(?P<keep>\\\\)"
    r"|(?P<comma>,\s*\\!\s*)"  # 10,\!080: the usual way to write a thousands comma
    r"|(?P<frac>\\[cdt]frac(?![A-Za-z]))"
    r"|(?P<text>\\(?:text(?:bf|it|rm|normal|sf|tt|up)|emph|[mh]box)(?![A-Za-z]))"
    r"|(?P<space>\s+|~|\\[;:\s]|\\q?quad(?![A-Za-z]))"
    r"|(?P<minus>[\u2212\u2013])"
    r"|(?P<degree>\u00b0|\^ ?\{? ?\\circ(?![A-Za-z]) ?\}?|\\degree(?![A-Za-z]))"
    r"|(?P<percent>\\%)"
    r"|(?P<open>\\lbrace(?![A-Za-z]))"
    r"|(?P<close>\\rbrace(?![A-Za-z]))"
    r"|(?P<bar>\\[lr]vert(?![A-Za-z]))"
    r"|(?P<round>\\langle(?![A-Za-z]))"
    r"|(?P<unround>\\rangle(?![A-Za-z]))"
    r"|(?P<drop>\\[,!]|\\(?:left|right|displaystyle|[bB]igg?[lrm]?)(?![A-Za-z])|\\?\$|[\u20ac\u00a3\u00a5]|\\[()\[\]])"
)
_LOOK_BECOMES = {
    "keep": "\\\\",
    "comma": ",",
    "frac": "\\frac",
    "text": "\\text",
    "space": " ",
    "minus": "-",
    "degree": "^{\\circ}",
    "percent": "%",
    "open": "\\{",
    "close": "\\}",
    "bar": "|",
    "round": "(",
    "unround": ")",
    "drop": "",
}
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
_UNICODE = str.maketrans(
    {
        "\u03c0": "\\pi ",
        "\u221e": "\\infty ",
        "\u00d7": "\\times ",
        "\u00b7": "\\cdot ",
        "\u22c5": "\\cdot ",
        "\u00f7": "/",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u2260": "\\ne ",
        "\u00b1": "\\pm ",
        "\u221a": "\\sqrt ",
        "\u222a": "\\cup ",
        "\u2208": "\\in ",
        "\u03b8": "\\theta ",
        **{superscript: f"^{digit}" for digit, superscript in enumerate(_SUPERSCRIPTS)},
        "\u00bd": "\\frac12 ",
        "\u00bc": "\\frac14 ",
        "\u00be": "\\frac34 ",
        "\u2205": "\\emptyset ",
    }
)
_WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|boxed) ?\{")
_TEXT = re.compile(r"\\(?:text|mathrm) ?\{([^{}]*)\}")
# A comma between digits that is no list: three digits follow. A decimal comma (0,123) is none.
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3})+(?![0-9]|,[0-9])")

_UNSIGNED = r"(?:(?:[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"[+-]? ?{_UNSIGNED}"
_POWER = r"[eE](?P<e>[+-]?[0-9]+)| ?\\(?:times|cdot) ?10 ?\^ ?(?:\{ ?(?P<power>[+-]?[0-9]+) ?\}|(?P<digit>[0-9]))"
_DECIMAL = re.compile(rf"(?P<number>{_SIGNED})(?:{_POWER})?")
_SLASH = re.compile(rf"(?P<sign>)(?P<above>{_SIGNED}) ?/ ?(?P<below>{_SIGNED})")
_FRAC = re.compile(
    rf"(?P<sign>[+-]?) ?\\frac ?(?P<above>\{{ ?{_SIGNED} ?\}}|[0-9]) ?(?P<below>\{{ ?{_SIGNED} ?\}}|[0-9])"
)
_MIXED = re.compile(r"([+-]?) ?([0-9]+) ([0-9]+) ?/ ?([0-9]+)")

_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_UNITS = set(
    "cm mm km kg mg ml mL ft in yd mi lb lbs oz hr hrs min mins sec secs Hz mph kph km/h m/s sq cu rad deg "
    "inch inches foot feet mile miles yard yards day days week weeks year years hour hours cent cents "
    "dollar dollars unit units gram grams pound pounds USD EUR percent pct degrees degree points meters metres".split()
)
# Words after a number that say more than what is counted.
_NO_UNITS = set(
    "or and if when for where while with mod modulo base remainder is are not no am pm to than plus minus times over "
    "east west north south left right up down above below infinity undefined clockwise counterclockwise "
    "bc ad bce ce th st nd rd choose through until from but except all any more less most least".split()
) | {name.lower() for name in NAMES}
_TAIL = re.compile(r"(?P<gap> ?)(?P<words>[A-Za-z][A-Za-z./ -]*)(?:\^ ?\{? ?[1-9] ?\}?)?(?:[/ ]*(?:s|hr|h)\^ ?[1-9])?")
_BEFORE_UNIT = re.compile(r"[0-9A-Za-z)}\]!]$")


def plain(text: str) -> str:
    """Return a text without what changes only its look. Linear; a text without anything in it becomes ""."""
    if not text.isascii():
        # The second makes full-width digits, commas and brackets plain ones.
        text = unicodedata.normalize("NFKC", text.translate(_UNICODE))
    text = _LOOK.sub(lambda match: _LOOK_BECOMES[match.lastgroup or ""], text)
    return without_wrapper(without_end(" ".join(text.split())))


def without_wrapper(text: str) -> str:
    """Take off a `\\text{...}` or braces around all."""
    for _ in range(_MAX_WRAPPERS):
        opening = _WRAPPER.match(text)
        start = opening.end() if opening else 1 if text.startswith("{") else 0
        if not start or closing_brace(text, start) != len(text) - 1:
            break
        text = without_end(text[start:-1].strip())
    return text


def without_end(text: str) -> str:
    """Take off the punctuation that ends a sentence."""
    # 0.333... goes on, it is not 0.333
    return text[:-1].rstrip() if text.endswith((".", ",", ";")) and not text.endswith("..") else text


def without_thousands(text: str) -> str:
    """Join the groups of thousands, `1,234` or `1{,}234`. Within brackets a comma separates."""
    text = re.sub(r"(?<=[0-9])\{,\}(?=[0-9]{3})", "", text)
    if "," not in text:
        return text
    depth, depths = 0, []
    for character in text:
        depth += (character in "([") - (character in ")]")
        depths.append(depth)
    if "\\{" in text:
        return text
    return _THOUSANDS.sub(lambda m: m[0] if depths[m.start()] > 0 else re.sub(r"[{},]", "", m[0]), text)


def read_number(text: str) -> Fraction | None:
    """Return the number that a text is: leading zeros, decimals, thousands, a/b, `\\frac`, powers of ten, 3 1/2."""
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
    if match := _MIXED.fullmatch(text):
        whole, above, below = (Fraction(match[i]) for i in (2, 3, 4))
        if 0 < above < below:
            return -(whole + above / below) if match[1] == "-" else whole + above / below
    return None


def without_unit(text: str) -> str:
    """Take off a unit after a number, so that `5\\text{ cm}`, `5 cm`, `5 m` and `5` are one answer.

    Units are dropped, not compared: a question has one, and equality stays transitive. In `\\text{...}` any words are a
    unit, apart from those that say something else (`or`, `base`, `p.m.`, `north`); outside, the usual units and, after
    a number and a space, words of four letters or more. `percent` becomes `%`, `million` a factor.
    """
    found = _TEXT.search(text)
    if found and found.start() > 0:
        body, wrapped = text[: found.start()].rstrip(), True
        tail = _TEXT.sub(lambda match: match[1], text[found.start() :])
        tail = " ".join(tail.split())
    else:
        bare = re.search(r"(?<=[0-9)}\]]) ?(?<![A-Za-z\\])[A-Za-z]{2}[A-Za-z./ ^0-9{}-]*$", text)
        if bare is None:
            return text
        body, wrapped, tail = text[: bare.start()].rstrip(), False, bare[0].strip()
        if text[bare.start()] != " " and tail.split("^")[0].split()[0] not in _SHORT_UNITS:
            return text
    match = _TAIL.fullmatch(tail.strip().rstrip("."))
    if match is None or not _BEFORE_UNIT.search(body):
        return text
    words = match["words"].replace("/", " ").replace("-", " ").split()
    return _with_unit(text, body, words, wrapped)


def _with_unit(text: str, body: str, words: list[str], wrapped: bool) -> str:
    lower = [word.rstrip(".").lower() for word in words]
    if any(word in _NO_UNITS or word in ("a.m", "p.m") for word in lower):
        return text
    known = all(word in _SHORT_UNITS for word in words)
    digits = any(map(str.isdigit, body)) or "\\pi" in body
    if not known and not (digits and (wrapped or read_number(body) is not None and len(words[0]) > 3)):
        return text
    if not (known or wrapped or digits):
        return text
    if lower[0] in ("percent", "pct", "percentage"):
        return body + "%"
    if lower[0] in _SCALES:
        return f"({body}) \\cdot {_SCALES[lower[0]]}"
    return body


def _decimal(text: str) -> Fraction:
    digits = re.sub(r"[^0-9.+-]", "", text)  # without commas, braces and spaces
    return Fraction(digits.removesuffix("."))
