"""Find and read numbers as a language writes them: 1,234.5 in English, 1.234,5 in Turkish and German.

What a response says in another language becomes plain English here, once, so that no other module has to know in
which language a number was written.
"""

import decimal
import re

from babel.numbers import NumberFormatError, parse_decimal

LOCALES = ("en", "tr", "de")

_MAX_LENGTH = 2_000  # characters; `equivalence` reads no longer text as a number either

_DECIMAL = (
    r"(?:(?:[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"  # 1,234.5  1{,}234  025
    r"|(?<![0-9.])\.[0-9]+)"  # .5, but neither the end of 1.2.5 nor that of ...5
)
# A sign straight after a digit, a letter or a closing bracket subtracts: "5-3" ends in 3, "x=-3" in -3.
_ENGLISH = re.compile(rf"(?:(?<![0-9A-Za-z)\]}}])[+\-\u2212])?{_DECIMAL}(?:/{_DECIMAL})?")

# All that looks like a number in some language; which it is, Babel decides. 1{,}5 is how LaTeX writes 1,5.
_RUN = r"(?:(?<![\w)\]}.,])[.,])?[0-9]+(?:(?:[.,]|\{[.,]\})[0-9]+)*"
_WRITTEN = re.compile(_RUN)
_SIGNED = re.compile(rf"((?<![\w)\]}}])[+\-\u2212])?({_RUN})(?:/({_RUN}))?")


def last_number(text: str, locale: str) -> str | None:
    """Return the last number of a text: sign, decimals, groups of thousands, a/b (`\\frac{3}{4}` gives 4).

    In English as it is written, otherwise in plain English. Empty if there is none. The last one decides: None if it is
    not written as this language does. Linear time.
    """
    last = None
    for match in _pattern(locale).finditer(text):
        last = match
    return "" if last is None else _value(last, locale)


def only_number(text: str, locale: str) -> str | None:
    """Return the number that a text is, read as by `last_number`; empty if it is anything else. Linear time."""
    match = _pattern(locale).fullmatch(text.strip())
    return "" if match is None else _value(match, locale)


def plain(text: str, locale: str) -> str | None:
    """Return an answer with its numbers in plain English: `1.234,5 cm` in Turkish or German becomes `1234.5 cm`.

    None if one of them is not written as this language does (`1,234.5` or `0.5`): it might mean another number.
    A comma separates, and stays, in `1,2,3` and next to a bracket in `(1,2)`, `[0,1]` or `\\{1,2\\}`; there, entries
    with decimals need a semicolon, `(1,5; 2)`. English, and text too long for a number, stays as it is. Linear time.
    """
    if locale == "en" or len(text) > _MAX_LENGTH:
        return text
    done, end = [], 0
    for match in _WRITTEN.finditer(text):
        number = match[0] if _is_list(match) else _read(match[0], locale)
        if number is None:
            return None
        done += [text[end : match.start()], number]
        end = match.end()
    return "".join(done) + text[end:]


def _is_list(match: re.Match[str]) -> bool:
    """Whether the commas of a run of digits separate entries."""
    run, text = match[0], match.string
    if "." in run or "," not in run:
        return False
    bracketed = text.endswith(("(", "[", "\\{"), 0, match.start()) or text.startswith((")", "]", "\\}"), match.end())
    return run.count(",") > 1 or bracketed and ";" not in text


def _pattern(locale: str) -> re.Pattern[str]:
    return _ENGLISH if locale == "en" else _SIGNED


def _value(match: re.Match[str], locale: str) -> str | None:
    """What a match of `_pattern` says, in plain English where it was another language; None if it is not written so."""
    if locale == "en":
        return match[0]
    read = [_read(part, locale) for part in match.groups()[1:] if part is not None]
    return None if None in read else (match[1] or "") + "/".join(read)


def _read(run: str, locale: str) -> str | None:
    """One number in plain English, None if it is not written as the language does."""
    run = run.replace("{", "").replace("}", "")
    if run.isdigit():
        return run  # leading zeros and all
    if len(run) > _MAX_LENGTH:
        return None
    try:
        with decimal.localcontext(prec=_MAX_LENGTH):  # at the usual 28 digits Babel would round, and fail
            return f"{parse_decimal(run, locale=locale, strict=True):f}"
    except NumberFormatError:
        return None
