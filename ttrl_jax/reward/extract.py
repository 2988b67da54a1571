"""Find the answer in the text of a response.

A response is a plain string; what was found in it is an `Answer`. The two types differ so that an answer
cannot go through the extractor a second time, where `\\frac{3}{4}` would turn into `4`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ttrl_jax.errors import InputError
from ttrl_jax.reward.numbers import LOCALES, last_number, only_number, plain
from ttrl_jax.reward.tags import between, parse_format, require_names

# \boxed or \fbox, not the start of a longer macro name, and the brace after it, possibly after spaces.
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(\{)?")
# A back-slash takes the next character with it, so \{ and \} are never seen as braces of a group.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

_FONT = r"\\(?:text|textbf|textrm|mathrm|mathbf)\s{0,3}\{\s{0,3}"
# A box that holds a letter: B  (B)  B.  \text{B}  \textbf{(B)}\ 12  "B. some option text"; but not B_2, BC or "B = 2".
_LETTER = re.compile(rf"(?:{_FONT})?\(?([A-E])(?:(?:\s*\}})?|\}}?[.):].*)", re.DOTALL)
# "answer is" or "Answer:", in bold or not. The counts are bounded so that no run is read over and over.
_SAYS = r"(?i:answer)\*{0,3}(?:\s{1,3}is|\s{0,3}:)"
# A letter in a sentence: "answer is (B)", "Answer: **B**".
_SAID = re.compile(rf"{_SAYS}[\s:*$(]{{0,9}}(?:{_FONT})?\(?([A-E])(?![A-Za-z0-9_'^])")
# What an answer in a sentence begins after and ends before. The points of 3.14 and 0.333... do not end it.
_ANSWER_IS = re.compile(rf"{_SAYS}[\s:*]{{0,9}}(?:(?:\\\[|\$\$)\s{{0,9}})?")
_SENTENCE_ENDS = re.compile(r"(?<!\.)\.(?=[\s*)$\"\u201d]|\Z)|[\n\r?\u3002]|\\\]|\$\$|\Z")
_THOUGHT_ENDS = "</think>"


@dataclass(frozen=True)
class Answer:
    """An extracted answer, as it was written apart from the space around it."""

    text: str


def extract(
    response: str, *, strategies: Sequence[str], thinking: bool, locale: str = "en", tags: Sequence[str] = ()
) -> Answer | None:
    """Return the answer of a response, or None if there is none. Linear in the length of the response.

    thinking: the model thinks first. Then the answer is looked for after the last `</think>` alone, and a response
        without one, whose thinking was cut off, has none. Otherwise the whole text is read, as the reference does,
        and `</think>` is text like any other.
    locale: the language in which numbers are written, one of LOCALES. Numbers of others than English come back in plain
        English. An answer with a number that is not written as the language does is none (`numbers.plain`), and no
        other is looked for.
    tags: names of the tags that make the format, for `tag_strict`.

    The strategies are tried in the order given, until one finds an answer:
      `boxed`        content of the last `\\boxed{...}` or `\\fbox{...}`. The last box decides: if empty,
                     has no brace or never closes (a truncated response), no earlier one is taken. The rule
                     of the reference, `verl/verl/utils/reward_score/ttrl_math/__init__.py`.
      `tag:NAME`     what the last pair of tags `<NAME>...</NAME>` holds, wherever it stands (`tags.between`).
      `number:NAME`  the number that the last pair of tags holds, if it holds nothing else (`numbers.only_number`).
      `tag_strict`   what the last tag of the format holds, if the whole response is in it (`tags.parse_format`).
      `answer_is`    what follows the last "answer is" or "Answer:", up to the end of the sentence or line.
      `choice`       the letter, A to E, of a multiple-choice question: the last box as above if it holds one, in
                     any usual spelling (`B`, `(B)`, `\\text{B}`, `B. an option`), else that of the last
                     "answer is (B)" or "Answer: B". The answer is the bare letter.
      `last_number`  the last number: sign, decimals, thousands commas, a/b (`\\frac{3}{4}` gives 4).

    Raises TypeError if `response` is not a string (an `Answer`, say), InputError for an unknown strategy or locale, for
    impossible tags, and for `tag_strict` without tags.
    """
    if not isinstance(response, str):
        raise TypeError(f"extract() reads the text of a response (str), got {type(response).__name__}")
    ways = [_way(name, locale, tags) for name in _require(strategies, locale, tags)]
    said = _after_thinking(response) if thinking else response
    if said is None:
        return None
    for way in ways:
        text = way(said)
        if text is None:
            return None
        if text.strip():
            return Answer(text.strip())
    return None


def in_format(response: str, *, tags: Sequence[str], thinking: bool) -> bool:
    """Whether a response is in the format that `tags` make (`tags.parse_format`); thinking: as in `extract`."""
    said = _after_thinking(response) if thinking else response
    return said is not None and parse_format(said, tags) is not None


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


def _answer_is(response: str) -> str:
    last = None
    for match in _ANSWER_IS.finditer(response):
        last = match
    if last is None:
        return ""
    return response[last.end() : _SENTENCE_ENDS.search(response, last.end()).start()].rstrip(" *")


def _after_thinking(response: str) -> str | None:
    # A prompt may open the thinking itself, so <think> need not be in the response.
    _, ended, said = response.rpartition(_THOUGHT_ENDS)
    return said if ended else None


_FINDERS = {"boxed": _last_box, "answer_is": _answer_is, "choice": _choice}
_IN_TAGS = ("tag:", "number:")
_NAMES = ("boxed", "tag:NAME", "number:NAME", "tag_strict", "answer_is", "choice", "last_number")


def _require(strategies: Sequence[str], locale: str, tags: Sequence[str]) -> Sequence[str]:
    """The strategies, if all that is asked for can be done."""
    unknown = [str(name) for name in strategies if name not in _NAMES and not str(name).startswith(_IN_TAGS)]
    if unknown or not strategies:
        raise InputError(
            f"Expected answer extraction by one or more of {', '.join(_NAMES)}, got {', '.join(unknown) or 'none'}."
        )
    require_names([name.partition(":")[2] for name in strategies if name.startswith(_IN_TAGS)])
    require_names(tags)
    if locale not in LOCALES:
        raise InputError(f"Expected numbers in one of the locales {', '.join(LOCALES)}, got {locale!r}.")
    if "tag_strict" in strategies and not tags:
        raise InputError("Expected the tags of a format (reward.format) to extract answers by tag_strict, got none.")
    return strategies


def _way(name: str, locale: str, tags: Sequence[str]) -> Callable[[str], str | None]:
    """The function of a strategy: response -> answer, empty if there is none, None if its numbers are refused."""
    if name == "last_number":
        return lambda text: last_number(text, locale)
    if name == "tag_strict":
        return lambda text: plain((parse_format(text, tags) or ("",))[-1], locale)
    if name.startswith("tag:"):
        return lambda text: plain(between(text, name.removeprefix("tag:")), locale)
    if name.startswith("number:"):
        return lambda text: only_number(between(text, name.removeprefix("number:")), locale)
    return lambda text: plain(_FINDERS[name](text), locale)
