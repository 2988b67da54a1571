"""Read the answers from the truths of a data set, which may be worked solutions."""

import re
from collections.abc import Callable, Sequence

from ttrl_jax.errors import InputError
from ttrl_jax.reward.extract import extract

HASH = "hash"  # what GSM8K ends its solutions with: "#### 85"
_HASH = re.compile(r"####[^\S\n]*([^\n#]*[^\s#])\s*\Z")
# What no answer has, but a worked solution: a mark of the answer, or many words (letters, not those of a \macro).
_MARK = re.compile(r"####|\\(?:boxed|fbox)(?![A-Za-z])|(?i:\banswer\*{0,3}(?: is\b|:))")
_WORD = re.compile(r"(?<![\\\w])[^\W\d_]{2,}")
_MANY_WORDS = 12
_WAYS = "hash (after the last ####), boxed, answer_is, last_number or tag:NAME"


def read_truths(
    given: Sequence[str | None],
    *,
    way: str,
    path: str,
    of_formulas: bool,
    say: Callable[[str], None],
    key: str = "data.truth_extract",
) -> Sequence[str | None]:
    """The answers in truths as they stand, None where one is missing or cannot be read.

    way: how each truth is read: hash, or a strategy of `extract`. "": truths are answers already, or they are read by
    hash if each of them ends in #### and an answer. path: the path of the data, for messages. of_formulas: whether
    answers are compared as mathematics, as solutions cannot be. say: gets a line about what was done. key: the key that
    sets the way, for messages.

    Raises InputError for an unknown way, and where no truth can be read as an answer.
    """
    there = [text for text in given if text is not None]
    if way == "" and there and all(_HASH.search(text) for text in there):
        way = HASH
        say(f"the truths are what follows #### in each ({key}='hash')")
    if way == "":
        worked = [text for text in there if _is_worked(text)] if of_formulas else []
        if worked and len(worked) == len(there):
            raise InputError(
                f"{path}: no truth can be read as an answer, each is a worked solution, such as "
                f"{_end(worked[0])}; set {key} to {_WAYS}, or take another column"
            )
        if worked:
            say(f"{len(worked)} of {len(there)} truths look like worked solutions, such as {_end(worked[0])}")
        return given
    reader = _reader(way, key)
    found = [None if text is None else reader(text) for text in given]
    missed = [text for text, answer in zip(given, found, strict=True) if text is not None and answer is None]
    if missed and len(missed) == len(there):
        raise InputError(
            f"{path}: no truth can be read by {key}={way!r}, such as {_end(missed[0])}; set it to "
            f"{_WAYS}, or leave it empty for truths that are answers as they stand"
        )
    if missed:
        say(f"{len(missed)} of {len(there)} truths cannot be read by {key}={way!r}: {_end(missed[0])}")
    return found


def _reader(way: str, key: str) -> Callable[[str], str | None]:
    if way == HASH:
        return lambda text: match[1] if (match := _HASH.search(text)) else None
    try:
        extract("", strategies=(way,), thinking=False)
    except InputError as error:
        raise InputError(f"{key} must be empty, hash or one of reward.extract's; {error}") from error

    def read(text: str) -> str | None:
        answer = extract(text, strategies=(way,), thinking=False)
        return None if answer is None else answer.text

    return read


def _is_worked(text: str) -> bool:
    return _MARK.search(text) is not None or len(_WORD.findall(text)) >= _MANY_WORDS


def _end(text: str) -> str:
    """The end of a text, where an answer would be."""
    return repr(text if len(text) <= 60 else f"... {text[-56:]}")
