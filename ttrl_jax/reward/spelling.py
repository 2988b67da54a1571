"""Take off what changes only the look of an answer: spacing, brackets' sizes, fonts, colours, currency signs, marks.

This is the one table of spellings: every other reader sees what `plain` returns.
"""

import re
import unicodedata
from fractions import Fraction

from ttrl_jax.reward.boxes import closing_brace

_MAX_WRAPPERS = 4  # nested \text{...} taken off; each costs a pass over the text
_MAX_NUMBER_LENGTH = 2_000  # characters; a longer text is not read as a number
_MAX_DIGITS = 1_000  # digits in the whole number; more is compared as text
_MAX_EXPONENT = 1_000  # power of ten, either sign; more is compared as text

_O = r"(?:\\circ(?![A-Za-z])|\\(?:text|mathrm) ?\{ ?o ?\}|o(?![A-Za-z]))"
# What is written for a pattern; the first that fits. One pass, so that the second back-slash of a line break `\\` is
# never taken for the start of `\,`.
_TABLE = (
    (r"\\\\", r"\\"),
    (r",\s*\\!\s*", ","),  # 10,\!080: the usual way to write a thousands comma
    (r"(?<=[0-9])\s?\{\s?,\s?\}\s?(?=[0-9]{3})", ""),  # 10{,}080: another
    (
        r"\\(?:mathbf|boldsymbol|bm|hat|vec) ?(?:\{ ?(?:\\hat ?\{?)?|(?= ?[\\ijk]))"
        r"\\?(?P<axis>[ijk])(?:math)?(?![A-Za-z]) ?\}{0,2}",
        r"\\hat \g<axis> ",
    ),
    (r"\\(?:mathrm|text|operatorname) ?\{ ?(?P<upright>[iexd]|[0-9.,]+) ?\}", r"\g<upright>"),
    (r"\\operatorname\*? ?\{ ?(?P<function>[a-z]{2,7}) ?\}", r"\\\g<function> "),
    (r"(?<=[\w)}]),?\s*\\q?quad\s*(?=[A-Za-z](?:_(?:\w|\{\w+\}))?\s*=)", ", "),  # x = 1 \quad y = 2
    (r"\s+|~|\\[;:\s]|\\q?quad", " "),
    (
        rf"(?:\{{ ?\}} ?)?\^ ?(?:\{{ ?{_O} ?\}}|\\circ(?![A-Za-z])|(?<=[0-9}}] \^)o(?![A-Za-z])"
        r"|(?<=[0-9}]\^)o(?![A-Za-z])|\\(?:text|mathrm) ?\{ ?o ?\})",
        r"^{\circ}",
    ),
    (r"(?<=[( ])mod(?= ?[0-9a-z])", r"\pmod"),
    (r"\\not ?=", r"\ne"),
    (r"\\l(?:og|g) ?_ ?(?:10|\{ ?10 ?\})(?![0-9])", r"\lg "),
    (r"\\(?:text)?color ?\{[^{}]{0,40}\}|\\tag\*? ?\{[^{}]{0,40}\}|\\text ?\{ ?\\?\$ ?\}", ""),
    (r"\\(?:left|right)\.|\\?\$|\\[,!()\[\]]", ""),
    (r"\\%", "%"),
)
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2})")  # \\frac, as JSON writes it; where lines end, \\ is something else
_WRITTEN = {f"row{i}": written for i, (_, written) in enumerate(_TABLE)}
_LOOK = re.compile(
    r"(?=[\\,\s~^{m$])(?:"  # most characters are none of these
    + "".join(f"(?P<row{i}>{pattern})|" for i, (pattern, _) in enumerate(_TABLE))
    + r"\\(?P<macro>[A-Za-z]+))"
)
_MACROS = {
    **dict.fromkeys("cfrac dfrac tfrac".split(), r"\frac"),
    **dict.fromkeys("dbinom tbinom".split(), r"\binom"),
    **dict.fromkeys("textbf textit textrm textnormal textsf texttt textup emph hbox mbox".split(), r"\text"),
    **dict.fromkeys("left right big bigg bigl bigm bigr biggl biggm biggr".split(), ""),
    **dict.fromkeys("Big Bigg Bigl Bigm Bigr Biggl Biggm Biggr".split(), ""),
    **dict.fromkeys("mathbf mathit mathsf mathtt boldsymbol bm underline underbrace overbrace".split(), ""),
    **dict.fromkeys("displaystyle textstyle limits therefore".split(), ""),
    **dict.fromkeys("vert lvert rvert".split(), "|"),
    **dict.fromkeys("ldots cdots dots".split(), "..."),
    **dict.fromkeys("leq leqslant".split(), r"\le"),
    **dict.fromkeys("geq geqslant".split(), r"\ge"),
    **dict.fromkeys("mod bmod pmod".split(), r"\pmod"),
    **{"backslash": r"\setminus", "neq": r"\ne", "lt": "<", "gt": ">", "degree": r"^{\circ}"},
    **{"lbrace": r"\{", "rbrace": r"\}", "langle": "(", "rangle": ")"},
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣᵃᵇᵏᵐ", "0123456789+-=()nixabkm", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓₐₖₘⱼ", "0123456789+-=()nixakmj", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+|[{''.join(_SUBSCRIPTS)}]+")
_SIGNS = r"""
    π \pi ∞ \infty × \times · \cdot ⋅ \cdot ∗ \cdot ÷ / ∕ / ≤ \le ⩽ \le ≥ \ge ⩾ \ge ≠ \ne ≈ \approx ≡ \equiv ± \pm ∓ \mp
    √ \sqrt ∪ \cup ∩ \cap ∈ \in ∖ \setminus ∣ \mid ∠ \angle ℝ \mathbb{R} ℤ \mathbb{Z} ℕ \mathbb{N} ∅ \emptyset ′ ' ″ ''
    ⌊ \lfloor ⌋ \rfloor ⌈ \lceil ⌉ \rceil ⟨ ( ⟩ ) − - – - … ... ° ^{\circ} ℃ ^{\circ}C 、 , 。 . “ " ” " ‘ ' ’ '
    α \alpha β \beta γ \gamma δ \delta θ \theta λ \lambda μ \mu µ \mu φ \varphi Ω \Omega
""".split()
_UNICODE = str.maketrans(
    {
        sign: f"{name} " if name[0] == "\\" and name[-1] != "}" else name
        for sign, name in zip(_SIGNS[::2], _SIGNS[1::2], strict=True)
    }
    | dict.fromkeys("€£¥\u200b\ufeff", "")
    | {"¢": " cents"}
)
_COUNTERS = re.compile(r"(?<=[0-9]) ?(?:厘米|千米|公里|分钟|小时|元|个|人|度|米|天|岁|种)$")
_WRAPPER = re.compile(r"\\(?:text|mathrm|boxed|fbox|framebox) ?\{")
# A comma between digits that is no list: three digits follow. A decimal comma (0,123) is none.
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_SPACED = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:(?: [0-9]{3})+(?:\.[0-9]+)?|(?:\.[0-9]{3}){2,})")
# Prose around an answer: "The answer is 5", "5 is the answer".
_SAID = re.compile(
    r"(?:(?:\\(?:text|mathrm) ?\{ ?)?(?:so |thus |hence |therefore,? )?(?:the )?"
    r"(?:final |correct )?(?:answer|option|choice)"
    r"(?P<is> ?(?:is ?:?|:) ?| (?=\(?[A-J]\)?\}?$))\}? ?|[*=\"'`]+ ?|\\approx(?![A-Za-z]) ?|:= ?)",
    re.IGNORECASE,
)
_ANSWERED = re.compile(
    r"(?: ?\\(?:text|mathrm) ?\{)? ?is the (?:final |correct )?answer\.? ?\}?$|[*\"`?\\ ]+$|(?<=[0-9])'$"
)
_LOOPED = re.compile(r"(?<![0-9.])([0-9]*\.[0-9]{0,6}?)(?:([0-9])\2\2+|([0-9]{2,6})\3+) ?\.\.\.")
_DOTTED = re.compile(r"([0-9]*\.[0-9]*)\\dot ?\{?([0-9])\}? ?([0-9]*) ?\\dot ?\{?([0-9])\}?")

_UNSIGNED = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"[+-]? ?{_UNSIGNED}"
_POWER = r"[eE](?P<e>[+-]?[0-9]+)| ?\\(?:times|cdot) ?10 ?\^ ?(?:\{ ?(?P<power>[+-]?[0-9]+) ?\}|(?P<digit>[0-9]))"
_DECIMAL = re.compile(rf"(?P<number>{_SIGNED})(?:{_POWER})?")
_SLASH = re.compile(rf"(?P<sign>)(?P<above>{_SIGNED}) ?/ ?(?P<below>{_SIGNED})")
_FRAC = re.compile(
    rf"(?P<sign>[+-]?) ?\\frac ?(?P<above>\{{ ?{_SIGNED} ?\}}|[0-9]) ?(?P<below>\{{ ?{_SIGNED} ?\}}|[0-9])"
)
_MIXED = re.compile(r"([+-]?) ?([0-9]+) ([0-9]+) ?/ ?([0-9]+)")


def plain(text: str) -> str:
    """Return a text without what changes only its look. Linear; a text without anything in it becomes ""."""
    if not text.isascii():
        # The second makes full-width digits, commas and brackets plain ones.
        text = _RAISED.sub(_raised, text.translate(_UNICODE))
        text = unicodedata.normalize("NFKC", "".join(map(_fraction, text))).translate(_UNICODE)
    if "\\\\" in text and "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = " ".join(_LOOK.sub(_look, text).split())
    if not text.isascii():
        text = _COUNTERS.sub("", text)
    if re.search(r"\\(?:over|choose)(?![A-Za-z])", text):
        text = _without_infix(text)
    if "..." in text and len(text) <= _MAX_NUMBER_LENGTH:
        text = _LOOPED.sub(lambda m: rf"{m[1]}\overline{{{m[2] or m[3]}}}", text)
    if "\\dot" in text:
        text = _DOTTED.sub(r"\1\\overline{\2\3\4}", text)
    text = without_wrapper(without_end(text))
    if len(text) <= _MAX_NUMBER_LENGTH:
        bare = _ANSWERED.sub("", text)
        while said := _SAID.match(bare):
            bare = bare[said.end() :]
        bare = bare.rstrip("\\ ") if not bare.endswith(r"\ ") else bare
        text = without_wrapper(without_end(bare)) if bare != text else text
        if _SPACED.fullmatch(text):
            text = re.sub(r" |\.(?=[0-9]{3}(?:\.|$))" if text.count(".") > 1 else " ", "", text)
    return text


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
    """Join the groups of thousands, `1,234`. Within brackets a comma separates."""
    if "," not in text or "\\{" in text:
        return text
    depth, depths = 0, []
    for character in text:
        depth += (character in "([") - (character in ")]")
        depths.append(depth)
    return _THOUSANDS.sub(lambda m: m[0] if depths[m.start()] > 0 else m[0].replace(",", ""), text)


def read_number(text: str) -> Fraction | None:
    """Return the number that a text is: leading zeros, decimals, thousands, a/b, `\\frac`, powers of ten, 3 1/2."""
    if len(text) > _MAX_DIGITS and (len(text) > _MAX_NUMBER_LENGTH or sum(map(str.isdigit, text)) > _MAX_DIGITS):
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


def _look(match: re.Match[str]) -> str:
    if match.lastgroup == "macro":
        return _MACROS.get(match["macro"], match[0])
    written = _WRITTEN[match.lastgroup or ""]
    return match.expand(written) if r"\g" in written else written


def _raised(match: re.Match[str]) -> str:
    table, sign = (_SUPERSCRIPTS, "^") if match[0][0] in _SUPERSCRIPTS else (_SUBSCRIPTS, "_")
    return f"{sign}{{{''.join(table[character] for character in match[0])}}}"


def _fraction(character: str) -> str:
    """2⅓ is a mixed number."""
    if character.isascii() or not unicodedata.decomposition(character).startswith("<fraction>"):
        return character
    value = Fraction(unicodedata.numeric(character)).limit_denominator(1000)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _without_infix(text: str) -> str:
    """Write TeX's `{a \\over b}` and `{n \\choose k}` as `\\frac` and `\\binom`."""
    for _ in range(_MAX_WRAPPERS):
        match = re.search(r" ?\\(over|choose)(?![A-Za-z]) ?", text)
        if match is None:
            break
        depth, start = 0, match.start()
        while start > 0 and depth >= 0:
            start -= 1
            escaped = text[start - 1 : start] == "\\"
            depth += (text[start] == "}" and not escaped) - (text[start] == "{" and not escaped)
        opened = depth < 0
        end = closing_brace(text, match.end()) if opened else len(text)
        if end is None:
            break
        above, below = text[start + opened : match.start()], text[match.end() : end]
        name = "frac" if match[1] == "over" else "binom"
        text = rf"{text[: start if opened else 0]}\{name}{{{above}}}{{{below}}}{text[end + opened :]}"
    return text


def _decimal(text: str) -> Fraction:
    digits = re.sub(r"[^0-9.+-]", "", text)  # without commas, braces and spaces
    return Fraction(digits.removesuffix("."))
