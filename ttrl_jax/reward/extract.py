"""Find the answer in the text of a response.

A response is a plain string; what was found in it is an `Answer`. The two types differ so that an answer
cannot go through the extractor a second time, where `\\frac{3}{4}` would turn into `4`.
"""

import re
from dataclasses import dataclass

from ttrl_jax.errors import InputError

# \boxed or \fbox, not the start of a longer macro name, and the brace after it, possibly after spaces.
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(\{)?")
# A back-slash takes the next character with it, so \{ and \} are never seen as braces of a group.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

_DECIMAL = (
    r"(?:(?:[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"  # 1,234.5  1{,}234  025
    r"|(?<![0-9.])\.[0-9]+)"  # .5, but neither the end of 1.2.5 nor that of ...5
)
# A sign straight after a digit, a letter or a closing bracket subtracts: "5-3" ends in 3, "x=-3" in -3.
_NUMBER = re.compile(rf"(?:(?<![0-9A-Za-z)\]}}])[+\-\u2212])?{_DECIMAL}(?:/{_DECIMAL})?")

_FONT = r"\\(?:text|textbf|textrm|mathrm|mathbf)\s{0,3}\{\s{0,3}"
# A box that holds a letter: B  (B)  B.  \text{B}  \textbf{(B)}\ 12  "B. some option text"; but not B_2, BC or "B = 2".
_LETTER = re.compile(rf"(?:{_FONT})?\(?([A-E])(?:(?:\s*\}})?|\}}?[.):].*)", re.DOTALL)
# A letter in a sentence: "answer is (B)", "Answer: **B**". The counts are bounded so that no run is read over and over.
_SAID = re.compile(
    rf"(?i:answer)\*{{0,3}}(?:\s{{1,3}}is|\s{{0,3}}:)[\s:*$(]{{0,9}}(?:{_FONT})?\(?([A-E])(?![A-Za-z0-9_'^])"
)
_THOUGHT_ENDS = "</think>"


@dataclass(frozen=True)
class Answer:
    """An extracted answer, as it was written apart from the space around it."""

    text: str


def extract(response: str, *, strategies: tuple[str, ...], thinking: bool) -> Answer | None:
    """Return the answer of a response, or None if there is none. Linear in the length of the response.

    thinking: the model thinks first. Then the answer is looked for after the last `</think>` alone, and a response
        without one, whose thinking was cut off, has none. Otherwise the whole text is read, as the reference does,
        and `</think>` is text like any other.

    The strategies are tried in the order given, until one finds an answer:
      `boxed`        content of the last `\\boxed{...}` or `\\fbox{...}`. The last box decides: if empty,
                     has no brace or never closes (a truncated response), no earlier one is taken. The rule
                     of the reference, `verl/verl/utils/reward_score/ttrl_math/__init__.py`.
      `choice`       the letter, A to E, of a multiple-choice question: the last box as above if it holds one, in
                     any usual spelling (`B`, `(B)`, `\\text{B}`, `B. an option`), else that of the last
                     "answer is (B)" or "Answer: B". The answer is the bare letter.
      `last_number`  the last number: sign, decimals, thousands commas, a/b (`\\frac{3}{4}` gives 4).

    Raises TypeError if `response` is not a string (an `Answer`, say), InputError for an unknown strategy.
    """
    if not isinstance(response, str):
        raise TypeError(f"extract() reads the text of a response (str), got {type(response).__name__}")
    unknown = [name for name in strategies if name not in _STRATEGIES]
    if unknown or not strategies:
        raise InputError(
            f"Expected answer extraction by one or more of {', '.join(_STRATEGIES)}, "
            f"got {', '.join(unknown) or 'none'}."
        )
    if thinking:
        # A prompt may open the thinking itself, so <think> need not be in the response.
        _, ended, response = response.rpartition(_THOUGHT_ENDS)
        if not ended:
            return None
    for name in strategies:
        text = _STRATEGIES[name](response).strip()
        if text:
            return Answer(text)
    return None


def closing_brace(text: str, start: int) -> int | None:
    """Return the index of the brace that closes the group whose content begins at `start`, or None."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def _last_box(response: str) -> str:
    last = None
    for match in _BOX.finditer(response):
        last = match
    if last is None or last[1] is None:
        return ""
    end = closing_brace(response, last.end())
    return "" if end is None else response[last.end() : end]


def _choice(response: str) -> str:
    boxed = _LETTER.fullmatch(_last_box(response).strip())
    if boxed is not None:
        return boxed[1]
    last = ""
    for match in _SAID.finditer(response):
        last = match[1]
    return last


def _last_number(response: str) -> str:
    last = ""
    for match in _NUMBER.finditer(response):
        last = match[0]
    return last


_STRATEGIES = {"boxed": _last_box, "choice": _choice, "last_number": _last_number}
