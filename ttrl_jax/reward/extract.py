"""Find the answer in the text of a response.

A response is a plain string; what was found in it is an `Answer`. The two types differ so that an answer
cannot go through the extractor a second time, where `\\frac{3}{4}` would turn into `4`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ttrl_jax.errors import InputError
from ttrl_jax.reward.boxes import last_box
from ttrl_jax.reward.choices import HEADING, LETTERS, boxed_letter, said_letter
from ttrl_jax.reward.numbers import LOCALES, last_number, only_number, plain
from ttrl_jax.reward.tags import between, parse_format, require_names

# "answer is" or "Answer:", in bold or not. The counts are bounded so that no run is read over and over.
_SAYS = r"(?i:answer)\*{0,3}(?:\s{1,3}is|\s{0,3}:)"
# What an answer in a sentence begins after; a heading "Answer" has it in the next line.
_ANSWER_IS = re.compile(rf"(?:{_SAYS}[\s:*]{{0,9}}|{HEADING}[\s*]{{0,9}})(?:(?:\\\[|\$\$)\s{{0,9}})?", re.MULTILINE)
# What it ends before. The points of 3.14 and 0.333... do not end it, nor does the mark of 5! + 1, $5!$ or "5!.".
_SENTENCE_ENDS = re.compile(
    r"(?<!\.)\.(?=[\s*)$\"\u201d]|\Z)|[\n\r?\u3002]|!+(?=\s{0,9}\Z|\s{1,9}[A-Z\n]|[*\"\u201d])|\\\]|\$\$|\Z"
)
# A reason or an afterthought, which is no part of it.
_CLAUSE = re.compile(
    r",?\s{1,3}(?:because|since)\b|,\s{1,3}(?:as|so|which|but|not|hence|thus|therefore)\b|\s{1,3}\u2014\s",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"<think>(?:(?!</?think>).)*(?:</think>|\Z)", re.DOTALL)
_THOUGHT_ENDS = "</think>"


@dataclass(frozen=True)
class Answer:
    """An extracted answer, as it was written apart from the space around it."""

    text: str


def extract(
    response: str,
    *,
    strategies: Sequence[str],
    thinking: bool,
    locale: str = "en",
    tags: Sequence[str] = (),
    offered: str = "",
) -> Answer | None:
    """Return the answer of a response, or None if there is none. Linear in the length of the response.

    thinking: the model thinks first. Then the answer is looked for after the last `</think>`, and if there is none,
        in all that is no thought: after the first `</think>` and outside of `<think>...</think>`. A response without
        `</think>`, whose thinking was cut off, has no answer. Otherwise the whole text is read, as the reference does,
        and `</think>` is text like any other.
    locale: the language in which numbers are written, one of LOCALES. Numbers of others than English come back in plain
        English. An answer with a number that is not written as the language does is none (`numbers.plain`), and no
        other is looked for.
    tags: names of the tags that make the format, for `tag_strict`.
    offered: the letters of the question's options, for `choice` (`choices.offered`); empty: A to J.

    The strategies are tried in the order given, until one finds an answer:
      `boxed`        what the last `\\boxed{...}`, `\\fbox{...}` or `\\framebox{...}` holds, or `\\boxed` before a bare
                     number; boxes of one closing sentence are a list (`boxes.last_box`). The last box decides: if
                     empty, or if it never closes (a truncated response), no earlier one is taken. The rule of the
                     reference, `verl/verl/utils/reward_score/ttrl_math/__init__.py`. A box that is only asked for,
                     "put it in \\boxed{}", is none.
      `tag:NAME`     what the last pair of tags `<NAME>...</NAME>` holds, wherever it stands (`tags.between`).
      `number:NAME`  the number that the last pair of tags holds, if it holds nothing else (`numbers.only_number`).
      `tag_strict`   what the last tag of the format holds, if the whole response is in it (`tags.parse_format`).
      `answer_is`    what follows the last "answer is", "Answer:" or heading "Answer", up to the end of the sentence or
                     line, without a reason (", because ...").
      `choice`       the letter of a multiple-choice question: of the last box as above if it holds one, in any usual
                     spelling (`B`, `(b)`, `\\text{Option B}`, `B. an option`), else that of the last "answer is (B)",
                     "correct option is B" or "Answer: B" (`choices.py`). The answer is the bare capital letter.
      `last_number`  the last number: sign, decimals, thousands commas, a/b (`\\frac{3}{4}` gives 4).

    Raises TypeError if `response` is not a string (an `Answer`, say), InputError for an unknown strategy or locale, for
    impossible tags, and for `tag_strict` without tags.
    """
    if not isinstance(response, str):
        raise TypeError(f"extract() reads the text of a response (str), got {type(response).__name__}")
    ways = [_way(name, locale, tags, offered) for name in _require(strategies, locale, tags)]
    for said in _said(response) if thinking else [response]:
        for way in ways:
            text = way(said)
            if text is None:
                return None
            if text.strip():
                return Answer(text.strip())
    return None


def in_format(response: str, *, tags: Sequence[str], thinking: bool) -> bool:
    """Whether a response is in the format that `tags` make (`tags.parse_format`); thinking: as in `extract`."""
    texts = _said(response)[:1] if thinking else [response]
    return any(parse_format(text, tags) is not None for text in texts)


def _choice(response: str, offered: str) -> str:
    among = offered or LETTERS
    return boxed_letter(last_box(response), among=among) or said_letter(response, among=among)


def _answer_is(response: str) -> str:
    last = None
    for match in _ANSWER_IS.finditer(response):
        last = match
    if last is None:
        return ""
    sentence = response[last.end() : _SENTENCE_ENDS.search(response, last.end()).start()]
    return _CLAUSE.split(sentence, maxsplit=1)[0].rstrip(" *")


def _said(response: str) -> list[str]:
    """What a model that thinks says, where an answer is looked for first and next; nothing if it only thinks."""
    # A prompt may open the thinking itself, so <think> need not be in the response.
    _, ended, last = response.rpartition(_THOUGHT_ENDS)
    _, _, rest = response.partition(_THOUGHT_ENDS)
    if not ended:
        return []
    return [last] if rest == last else [last, _THOUGHT.sub("\n", rest).replace(_THOUGHT_ENDS, "\n")]


_FINDERS = {"boxed": last_box, "answer_is": _answer_is}
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


def _way(name: str, locale: str, tags: Sequence[str], offered: str) -> Callable[[str], str | None]:
    """The function of a strategy: response -> answer, empty if there is none, None if its numbers are refused."""
    if name == "choice":
        return lambda text: _choice(text, offered)
    if name == "last_number":
        return lambda text: last_number(text, locale)
    if name == "tag_strict":
        return lambda text: plain((parse_format(text, tags) or ("",))[-1], locale)
    if name.startswith("tag:"):
        return lambda text: plain(between(text, name.removeprefix("tag:")), locale)
    if name.startswith("number:"):
        return lambda text: only_number(between(text, name.removeprefix("number:")), locale)
    return lambda text: plain(_FINDERS[name](text), locale)
