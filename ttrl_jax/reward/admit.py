"""Decide which answers may be read as formulas. Everything that a model wrote passes here before any parser sees it.

Only what is known to be a formula of bounded size goes through: characters, commands, words, digits, exponents and
nesting are all checked against short lists and small limits, by linear passes over a bounded text.
"""

import functools
import re

from ttrl_jax.reward.spelling import plain, without_thousands

MAX_CHARACTERS = 300
_MAX_TOKENS = 150
_MAX_DIGITS = 120  # in the whole text
_MAX_NUMBER = 40  # digits in a row
_MAX_COUNTED = 3  # digits of a number in a text with factorials or binomials
_MAX_POWER = 3  # digits of an exponent or of the index of a root
_MAX_POWERS = 12  # signs ^ in the whole text
_MAX_DEPTH = 10  # brackets and braces around each other
_MAX_WORD = 3  # letters in a row, unless they name a function; more is prose, not a product

_ROOT = re.compile(r"\\sqrt ?(?=[0-9A-Za-z])([0-9A-Za-z])")
_COMMANDS = frozenset(
    "frac sqrt cdot times div pm mp binom infty pi le leq leqslant ge geq geqslant lt gt ne neq in cup cap setminus "
    "emptyset varnothing mathbb circ lfloor rfloor lceil rceil begin end "
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp "
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Delta Theta Lambda Xi Sigma Phi Psi Omega"
    " { } % | \\".split(" ")
)
_FUNCTIONS = frozenset("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp sqrt".split())
_ARGUMENTS = frozenset("pmatrix bmatrix matrix vmatrix".split())  # of \begin and \end
_SYMBOLS = frozenset("+-*/^_=<>()[]{}|,.!%&")

_TOKEN = re.compile(
    r"\\(?P<command>[A-Za-z]+|.)|(?P<number>[0-9]+)|(?P<word>[A-Za-z]+)|(?P<space>\s+)|(?P<symbol>.)", re.DOTALL
)
_POWER = re.compile(r"\^[\s{(+-]*([0-9]+)|\\sqrt ?\[ ?([0-9]+)")
_FUNCTION = r"\\(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|lg)(?![A-Za-z])"
# What the parser drops or takes for something else: a transposition, what stands below a bracket, a base, a product
# after a function without brackets (it reads `\sin x \cdot 2` as sin 2x), a function's letter, a derivative, a set by
# its property.
_MISREAD = re.compile(
    rf"\^\s*\{{?\s*T\b|[)\]}}]\s*_|[0-9]\s*_|{_FUNCTION}\s*[^\s(^_{{].*(?:\*|\\cdot|\\times)"
    rf"|{_FUNCTION}\s*[^\s(^_{{][^-+=<>,]*(?:\(|\\sqrt|e\s*\^)|(?<![A-Za-z\\])[fghFGHPQT]'*\s*\("
    r"|\\frac\s*\{\s*d\s*[A-Za-z]?\s*\}\s*\{\s*d|(?<![A-Za-z])d\s*[a-z]\s*/\s*d|\\\{\s*\(?[A-Za-z][^|{}=<>]*\|.*[=<>]",
    re.DOTALL,
)
# Nothing but letters: a word, a name, the letter of a choice.
_PROSE = re.compile(r"(?:\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)(?![A-Za-z])|[A-Za-z\s(){}.,;:'\"?-])+")


def is_prose(text: str) -> bool:
    """Whether an answer consists of letters alone (`blue`, `\\text{Monday}`, `B`), so that no algebra applies."""
    return len(text) <= MAX_CHARACTERS and _PROSE.fullmatch(text) is not None


def admit(text: str) -> str | None:
    """Return the answer as a plain LaTeX formula that is safe to parse, or None if it may not be parsed."""
    return _admit(text) if len(text) <= MAX_CHARACTERS else None


@functools.lru_cache(maxsize=10_000)  # an answer is compared with all others of its group
def _admit(text: str) -> str | None:
    text = _ROOT.sub(r"\\sqrt{\1}", without_thousands(plain(text)).replace("**", "^")).replace("%", r"\%")
    tokens = list(_TOKEN.finditer(text))
    if not 0 < len(tokens) <= _MAX_TOKENS or not all(map(_known, tokens)) or not _nested(text):
        return None
    return text if _small(text) else None


def _known(token: re.Match[str]) -> bool:
    match token.lastgroup:
        case "command":
            return token["command"] in _COMMANDS
        case "word":
            return len(token["word"]) <= _MAX_WORD or token["word"] in _FUNCTIONS | _ARGUMENTS
        case "number":
            return token["number"].isascii() and len(token["number"]) <= _MAX_NUMBER
        case "symbol":
            return token["symbol"] in _SYMBOLS
    return True


def _nested(text: str) -> bool:
    """Whether braces match and nothing is nested too deep; a power of a power must hold a letter."""
    depth = 0
    braces: list[bool] = []  # for each open brace: does it follow a ^?
    brackets = 0
    for i, character in enumerate(text):
        escaped = i > 0 and text[i - 1] == "\\"
        if character == "{" and not escaped:
            braces.append(text[:i].rstrip().endswith("^"))
        elif character == "}" and not escaped:
            if not braces:
                return False
            braces.pop()
        elif character in "([":
            brackets += 1
        elif character in ")]":
            brackets -= 1
        elif character == "^" and any(braces) and not re.search(r"[A-Za-z]", text[i - 1 : i]):
            return False  # 9^{9^9}: only x^{x^2} may stack
        depth = max(depth, len(braces) + brackets)
    return not braces and depth <= _MAX_DEPTH


def _small(text: str) -> bool:
    if sum(map(str.isdigit, text)) > _MAX_DIGITS or text.count("^") > _MAX_POWERS:
        return False
    if any(len(power or root) > _MAX_POWER for power, root in _POWER.findall(text)):
        return False
    if "!" in text or "binom" in text:
        if any(len(number) > _MAX_COUNTED for number in re.findall("[0-9]+", text)):
            return False
        if re.search(r"![\s)}\]]*!", text) or "^" in text:
            return False
    return _MISREAD.search(text) is None
