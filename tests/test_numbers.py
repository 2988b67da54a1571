"""Hand-worked: numbers of three languages become plain English, and what only looks like one of theirs does not."""

import pytest

from ttrl_jax.reward.numbers import last_number, only_number, plain

# Turkish and German write numbers alike. Text -> plain English; None: not written as they do.
PLAIN = {
    "1.234,5": "1234.5",
    "1.234.567,89": "1234567.89",
    "1.234": "1234",
    "1.234,50": "1234.50",
    "1234,5": "1234.5",
    "0,5": "0.5",
    ",5": "0.5",
    "3,14159": "3.14159",
    "42": "42",
    "007": "007",
    "-1.234,5": "-1234.5",
    "\u22121,5": "\u22121.5",
    "1{,}5": "1.5",
    "1{.}234{,}5": "1234.5",
    "1,234.5": None,
    "1,234,567.8": None,
    "0.5": None,
    ".5": None,
    "12.34": None,
    "1.2345": None,
    "12.34,5": None,
    "1.234,5.6": None,
    "0.123": None,
    "12.05.2024": None,
    # What stands around a number stays.
    "1.234,5 cm": "1234.5 cm",
    r"1,5\text{ kg}": r"1.5\text{ kg}",
    "12,5%": "12.5%",
    "%12,5": "%12.5",
    r"12,5\%": r"12.5\%",
    "$1.234,5$": "$1234.5$",
    "1.234,5.": "1234.5.",
    "x = 1,5": "x = 1.5",
    "x = 1.5": None,
    r"\frac{1,5}{2}": r"\frac{1.5}{2}",
    r"\frac{0.5}{2}": None,
    r"1,5 \times 10^{3}": r"1.5 \times 10^{3}",
    # A comma between the entries of a list.
    "(1,2)": "(1,2)",
    r"\left(1,2\right)": r"\left(1,2\right)",
    "[0,1]": "[0,1]",
    r"\{1,2\}": r"\{1,2\}",
    "1,2,3": "1,2,3",
    "(1, 2)": "(1, 2)",
    "(1,5; 2)": "(1.5; 2)",
    "[0,5; 1,5]": "[0.5; 1.5]",
    "(1.234, 5)": "(1234, 5)",
    # No number at all.
    "": "",
    "yedi": "yedi",
    r"\sqrt{2}": r"\sqrt{2}",
}


@pytest.mark.parametrize("locale", ["tr", "de"])
@pytest.mark.parametrize(("text", "english"), PLAIN.items(), ids=PLAIN)
def test_plain(text: str, english: str | None, locale: str) -> None:
    assert plain(text, locale) == english
    assert plain(text, "en") == text


LAST = {  # text: in English, in Turkish and German; None: not written as they do
    "5 elma, 1.234,5 lira": ("5", "1234.5"),
    "1,234.5 and then none": ("1,234.5", None),
    "12,5 sonra 0.5": ("0.5", None),  # the last one decides
    "-1,5": ("5", "-1.5"),
    "5-3": ("3", "3"),
    "x=-3": ("-3", "-3"),
    "1,5/2,5": ("5", "1.5/2.5"),
    "1,5/2.5": ("5/2.5", None),
    "bkz. s.5": (".5", "5"),
    "yok": ("", ""),
    "": ("", ""),
}


@pytest.mark.parametrize(("text", "english", "local"), [(t, *both) for t, both in LAST.items()], ids=LAST)
def test_last_number(text: str, english: str, local: str | None) -> None:
    assert last_number(text, "en") == english
    assert [last_number(text, locale) for locale in ("tr", "de")] == [local] * 2


ONLY = {  # text: in English, in Turkish and German; None: not written as they do
    "42": ("42", "42"),
    " 42\n": ("42", "42"),
    "-7": ("-7", "-7"),
    "12,5": ("", "12.5"),
    "12.5": ("12.5", None),
    "1.250": ("1.250", "1250"),
    "1,250": ("1,250", "1.250"),
    "1.250,75": ("", "1250.75"),
    "1.25,5": ("", None),
    "3/4": ("3/4", "3/4"),
    "42 lira": ("", ""),
    "%12,5": ("", ""),
    "42.": ("", ""),
    "3 + 4": ("", ""),
    "3,4 ve 5": ("", ""),
    "yedi": ("", ""),
    "": ("", ""),
}


@pytest.mark.parametrize(("text", "english", "local"), [(t, *both) for t, both in ONLY.items()], ids=ONLY)
def test_only_number(text: str, english: str, local: str | None) -> None:
    assert only_number(text, "en") == english
    assert [only_number(text, locale) for locale in ("tr", "de")] == [local] * 2


def test_long_numbers_are_exact() -> None:
    groups = "1" + ".234" * 300
    assert only_number(groups, "tr") == groups.replace(".", "")
    assert plain(groups + ",5", "tr") == last_number(groups + ",5", "de") == groups.replace(".", "") + ".5"


def test_what_is_too_long_for_a_number_is_left_alone() -> None:
    run = "1" + ".234" * 1000
    assert plain(run, "tr") == run
    assert last_number(run, "tr") is None
