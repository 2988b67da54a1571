"""The reference's way to vote and to grade, written anew from its description, to measure ours against.

`verl/verl/trainer/ppo/ttrl_utils.py` and `verl/verl/utils/reward_score/ttrl_math/` of PRIME-RL/TTRL at 5806e11: every
answer is turned into a sympy string, the most common string is the label, and every answer as it was written is graded
against that string, three ways, the first that agrees counts. All of it runs one answer after the other, with alarms as
time limits (so in the main thread only).

UNSAFE: `sympy.parse_expr` evaluates its text as Python. Give it answers that this repository made, never a model's.
"""

import logging
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import parse, verify
from sympy.parsing.sympy_parser import parse_expr

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of our alarms taking the place of its own

_NAME_SECONDS, _DIFFERENCE_SECONDS, _LATEX_SECONDS = 10, 5, 1  # the time limits of the reference
_UNITS = (
    "degree cm centimeter meter mile second minute hour day week month year foot feet inch yard liter gram dollar cent "
    "point unit percent"
).split()
_TEXT_UNIT = re.compile(rf"\\(?:text|mbox)\{{ ?(?:{'|'.join(_UNITS)})(?:s|es)?\}}(?:\^[23])?$")
_FRACTION = re.compile(r"\\frac\{([^{}]+)\}\{([^{}]+)\}")


def vote(answers: Sequence[str | None]) -> tuple[str, list[bool]]:
    """Return the label, a sympy string, and whether each answer is graded equal to it."""
    counts = Counter(_name(answer) for answer in answers if answer is not None)
    label = counts.most_common(1)[0][0] if counts else "None"
    return label, [answer is not None and grade(answer, label) for answer in answers]


def grade(answer: str, label: str) -> bool:
    """Return whether an answer equals the label: as text, by sympy, or by math_verify."""
    return (
        _plain(answer) == _plain(label)
        or _within(_DIFFERENCE_SECONDS, False, _same_parts, answer, label)
        or _within(_LATEX_SECONDS, False, _same_latex, answer, label)
    )


def _name(answer: str) -> str:
    return _within(_NAME_SECONDS, answer, _simplified, answer)


def _simplified(answer: str) -> str:
    try:
        return str(sympy.simplify(parse_expr(answer, transformations="all", evaluate=False)))
    except _LateError:
        raise
    except Exception:  # whatever evaluating the text raised
        return str(sympy.simplify(latex2sympy(answer)))


def _plain(text: str) -> str:
    """Normalise the spelling of a text, without reading it."""
    for old, new in (("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""), ("^{\\circ}", "")):
        text = text.replace(old, new)
    for gone in ("^\\circ", "\\$", "$", "\\!", "\\%", "%", "\n"):
        text = text.replace(gone, "")
    text = _TEXT_UNIT.sub("", text.strip().rstrip(".").strip())
    text = re.sub(r"^[A-Za-z]\s*=", "", text).replace(" ", "")
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"^\.", "0.", text)
    return re.sub(r"\\text\{(.*)\}", r"\1", text)


def _same_parts(answer: str, label: str) -> bool:
    a, b = _parts(answer), _parts(label)
    return len(a) == len(b) and a[0] == b[0] and all(_same_part(x, y) for x, y in zip(a[1:], b[1:], strict=True))


def _parts(text: str) -> list[str]:
    """Return the brackets around a tuple or an interval ("" if there are none) and what stands between its commas."""
    text = _plain(text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and "," in text:
        return [text[0] + text[-1], *text[1:-1].split(",")]
    return ["", text]


def _same_part(answer: str, label: str) -> bool:
    if answer == label:
        return True
    whole, reduced = re.compile(r"-?\d+"), re.compile(r"-?(?:\\frac\{)?\d+(?:\}\{|/)\d+\}?")
    if whole.fullmatch(label) or (reduced.fullmatch(label) and reduced.fullmatch(answer)):
        # Whole numbers are compared strictly, and a fraction must be reduced as the label is.
        return whole.fullmatch(answer) is not None and int(answer) == int(label) if whole.fullmatch(label) else False
    return sympy.simplify(parse_expr(f"({_python(label)})-({_python(answer)})", transformations="all")) == 0


def _python(text: str) -> str:
    text = _FRACTION.sub(r"((\1)/(\2))", text)
    text = re.sub(r"\\sqrt\{([^{}]+)\}", r"sqrt(\1)", text)
    return text.replace("\\pi", "pi").replace("\\cdot", "*").replace("^", "**").replace("{", "(").replace("}", ")")


def _same_latex(answer: str, label: str) -> bool:
    a, b = (parse(f"${text}$", parsing_timeout=None) for text in (answer, label))
    return verify(b, a, timeout_seconds=None)


class _LateError(Exception):
    pass


def _within(seconds: int, otherwise, function: Callable, *arguments: str):
    """Call a function; return `otherwise` if it raises anything or takes longer."""
    try:
        with _alarm(seconds):
            return function(*arguments)
    except Exception:
        return otherwise


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def late(*_) -> None:
        raise _LateError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
