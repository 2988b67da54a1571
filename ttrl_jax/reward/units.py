"""Take off a unit after a number. What may be taken off is a list; a word that changes the value is none."""

import re

from ttrl_jax.reward.formula import NAMES
from ttrl_jax.reward.spelling import read_number

# A number of these is that many of something else.
_SCALES = {
    **{"dozen": "12", "hundred": "100", "thousand": "1000", "lakh": "100000", "million": "1000000"},
    **{"crore": "10000000", "billion": "1000000000", "trillion": "1000000000000"},
    **{"half": r"\frac12", "halves": r"\frac12", "third": r"\frac13", "quarter": r"\frac14", "fourth": r"\frac14"},
    **{"fifth": r"\frac15", "sixth": r"\frac16", "seventh": r"\frac17", "eighth": r"\frac18", "ninth": r"\frac19"},
    **{"tenth": r"\frac{1}{10}", "hundredth": r"\frac{1}{100}", "thousandth": r"\frac{1}{1000}"},
}
_PREFIXES = ("", "milli", "centi", "deci", "kilo", "mega", "giga", "micro", "nano")
_BASES = "meter metre gram liter litre second watt joule newton pascal volt ampere amp hertz byte ohm".split()
_SHORT = set(
    "cm mm km nm dm kg mg ml mL cl dl ft in yd mi lb lbs oz hr hrs min mins sec secs Hz kHz mph kph fps rpm sq cu rad "
    "deg inch inches foot feet mile yard day week month year hour minute cent dollar unit pound USD EUR GBP "
    "percent pct percentage point degree m g s h L l K N J W V A C F rpm gal qt pt rs lira euro yuan yen rupee peso "
    "Pa kPa kN kJ kW MHz GHz kB MB GB mol radian".split()
)
_WORDS = {prefix + base for prefix in _PREFIXES for base in _BASES} | {
    *"square cubic sq cu per each of celsius fahrenheit kelvin foot".split(),
    *"person people child children man men woman women".split(),
    *"way time student item percent pct percentage total altogether different distinct possible".split(),
    *"mi/hr km/h m/s gallon quart pint ounce ton tonne acre hectare century decade angstrom ohm".split(),
}
# Words after a number that say more than what is counted.
_CHANGE = set(
    "or and if when for where while with mod modulo base remainder is are not no am pm to than plus minus over "
    "east west north south left right up down above below infinity undefined clockwise counterclockwise "
    "bc ad bce ce th st nd rd choose through until from but except all any more less most least increase decrease "
    "increases decreases gain loss profit squared cubed factorial squares cubes factorials powers pairs couples "
    "dozens scores".split()
) | {name.lower() for name in NAMES} - {"sec"}
_PLURAL = re.compile(r"[a-z]{2,}(?:[^suia]s|[aeiou]es|ies|sses|uses)")
_TEXT = re.compile(r"\\(?:text|mathrm) ?\{([^{}]*)\}")
_FRACTION = re.compile(r"\\frac ?\{ ?\\(?:text|mathrm) ?\{([^{}]*)\} ?\} ?\{ ?\\(?:text|mathrm) ?\{([^{}]*)\} ?\}")
_SYMBOL = re.compile(r"\\mu ?(?=\\(?:text|mathrm) ?\{[a-zA-Z]+\}$)|(?<=[0-9}]) ?(?:k|M)?\\Omega$")
_DEGREES = re.compile(r"\^\{\\circ\} ?(?:\\(?:text|mathrm) ?\{ ?)?[CF](?: ?\})?$")
_BARE = re.compile(r"(?<=[0-9)}\]]) ?(?<![A-Za-z\\])[A-Za-z]{2}[A-Za-z./ ^0-9{}-]*$")
_TAIL = re.compile(r"(?P<words>[A-Za-z][A-Za-z./ -]*)(?:\^ ?\{? ?[1-9] ?\}?)?(?:[/ ]*(?:s|hr|h)\^ ?\{?[1-9]\}?)?")
_BEFORE_UNIT = re.compile(r"[0-9A-Za-z)}\]!]$")


def without_unit(text: str) -> str:
    """Take off a unit after a number, so that `5\\text{ cm}`, `5 cm`, `5\\text{ m}` and `5` are one answer.

    Units are dropped, not compared: a question has one, and equality stays transitive. A unit is one of the list, or
    what is counted, a plural. Without `\\text` it stands after a number and has two letters or more. `percent` becomes
    `%`; `million` and `tenths` are factors.
    """
    text = _DEGREES.sub(r"^{\\circ}", text)
    if "\\" in text:
        text = _SYMBOL.sub("", _FRACTION.sub(r"\\text{\1/\2}", text))
    found = _TEXT.search(text)
    if found and found.start() > 0:
        body, wrapped = text[: found.start()].rstrip(" /"), True
        tail = " ".join(_TEXT.sub(lambda match: match[1], text[found.start() :]).replace("\\cdot", " ").split())
    else:
        bare = _BARE.search(text)
        if bare is None:
            return text
        body, wrapped, tail = text[: bare.start()].rstrip(), False, bare[0].strip()
        if text[bare.start()] != " " and tail.split("^")[0].split()[0] not in _SHORT:
            return text
    match = _TAIL.fullmatch(tail.strip().rstrip("."))
    if match is None or not _BEFORE_UNIT.search(body):
        return text
    words = match["words"].replace("/", " ").replace("-", " ").replace(".", " ").split()
    return _with_unit(text, body, words, wrapped)


def _with_unit(text: str, body: str, words: list[str], wrapped: bool) -> str:
    lower = [word.lower() for word in words]
    scale = _SCALES.get(lower[0]) or _SCALES.get(lower[0].removesuffix("s"))
    if any(word in _CHANGE or word in _SCALES or word.removesuffix("s") in _SCALES for word in lower[bool(scale) :]):
        return text
    units = [word in _SHORT or _is_word(low) for word, low in zip(words, lower, strict=True)]
    digits = any(map(str.isdigit, body)) or "\\pi" in body
    counted = any(map(_PLURAL.fullmatch, lower)) and (wrapped or len(words[0]) > 3)
    after_number = digits and (wrapped or read_number(body) is not None)
    if scale:
        rest = all(units[1:]) or any(map(_PLURAL.fullmatch, lower[1:]))
        return f"({body}) \\cdot {scale}" if after_number and rest else text
    if not (all(units) and (wrapped or digits) or counted and (wrapped or after_number)):
        return text
    return body + "%" if lower[0] in ("percent", "pct", "percentage") else body


def _is_word(word: str) -> bool:
    singular = word.removesuffix("s")
    return word in _WORDS or singular in _WORDS or singular in _SHORT and len(singular) > 2
