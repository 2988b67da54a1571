"""Hand-worked: the Turkish word problems, their answers worked out again from their texts, and their suffixes."""

import hashlib
import json
import re
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest

from ttrl_jax.data import turkish
from ttrl_jax.reward.numbers import plain

PARTS = {"train": turkish.train, "held_out": turkish.held_out}
SIZES = {"train": 96, "held_out": 192}
SHA256 = {
    "train": "681768ddff6013c87886aeb985b1d6396cbc90751cbb341d7ac4968db648a11a",
    "held_out": "11555941fae3e3305253b1694165b4c66c905b40a71a326ada6a8072ad3dce29",
}
# Words that only one kind of question has: its answer, from the numbers in the order in which the text has them.
WORKED = {
    "Annesi ona": lambda a, b: a + b,
    "kardeşine verdi": lambda a, b: a - b,
    "Böyle": lambda a, b: a * b,
    "paylaştırıldı": lambda a, b: a / b,
    "ekmeklerden": lambda a, b: a * b,
    "para üstü": lambda a, b, c: c - a * b,
    "stadyumda": lambda a, b: a + b,
    "depoda": lambda a, b: a - b,
    "sayfa kitap okuyor": lambda a, b: a * b,
    "sayfalık": lambda a, b: a / b,
    "bisikletin": lambda a, b: a - b,
    "simidin": lambda a, b: a * b,
    "çiftlikte": lambda a, b: 2 * a + 4 * b,
    "otobüste": lambda a, b, c: a - b + c,
    "hafta": lambda a, b, c: a * b - c,
    "fabrikada": lambda a, b, c: a * b / c,
}


def written_numbers(question: str) -> list[str]:
    return re.findall(r"[0-9]+(?:[.,][0-9]+)*", question)


def numbers(question: str) -> list[Decimal]:
    """As a Turkish reader reads them."""
    return [Decimal(plain(number, "tr")) for number in written_numbers(question)]


@pytest.mark.parametrize("part", PARTS)
def test_answers_follow_from_the_texts_and_are_whole(part: str):
    kinds: Counter[str] = Counter()
    for question, truth in PARTS[part]():
        [kind] = [words for words in WORKED if words in question]
        answer = WORKED[kind](*numbers(question))
        assert answer == answer.to_integral_value() > 0, question
        assert truth == str(int(answer)), question
        kinds[kind] += 1
    assert kinds == dict.fromkeys(WORKED, SIZES[part] // 16)


@pytest.mark.parametrize("part", PARTS)
def test_the_list_is_the_same_on_every_machine(part: str):
    """Results compare across machines and releases only while it stays."""
    made = PARTS[part]()
    assert len(made) == SIZES[part]
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest() == SHA256[part]


def test_no_two_questions_have_the_same_numbers():
    questions = [question for make in PARTS.values() for question, _ in make()]
    assert len({tuple(sorted(numbers(question))) for question in questions}) == len(questions) == 288


def test_numbers_are_written_as_turkish_writes_them():
    found = [number for make in PARTS.values() for question, _ in make() for number in written_numbers(question)]
    assert all(re.fullmatch(r"[0-9]{1,3}(\.[0-9]{3})*(,50)?", number) for number in found)
    assert sum("." in number for number in found) > 80 and sum("," in number for number in found) == 18


VOWELS = {"a": "ı", "ı": "ı", "e": "i", "i": "i", "o": "u", "u": "u", "ö": "ü", "ü": "ü"}  # last one -> the suffix's
SOFT = {"k": "ğ", "p": "b", "ç": "c", "t": "d"}


def last_vowel(word: str) -> str:
    return re.findall("[aıeioöuü]", word.lower())[-1]


def test_suffixes_follow_the_vowels():
    for name, whose in turkish.NAMES.items():
        joint = "n" if name[-1] in VOWELS else ""
        assert whose == f"{name}'{joint}{VOWELS[last_vowel(name)]}n"
    for thing, its in turkish.THINGS.items():
        ending = VOWELS[last_vowel(thing)]
        assert its == (
            f"{thing}s{ending}" if thing[-1] in VOWELS else f"{thing[:-1]}{SOFT.get(thing[-1], thing[-1])}{ending}"
        )


def test_whoever_is_named_stays_the_same_person():
    for make in PARTS.values():
        for question, _ in make():
            named = {name for name in turkish.NAMES if re.search(rf"\b{name}\b", question)}
            assert len(named) <= 1 and not re.search(r"[{}]", question), question


def test_examples_are_of_other_numbers_and_come_to_their_answers():
    """What a model learns from is none of the questions; without slips its last number is the answer."""
    rng = np.random.default_rng(0)
    asked = {tuple(sorted(written_numbers(q))) for part in PARTS.values() for q, _ in part()}
    kinds, forms = Counter(), Counter()
    for _ in range(2000):
        question, worked = turkish.example(rng, noise=0.0)
        assert tuple(sorted(written_numbers(question))) not in asked
        [kind] = [words for words in WORKED if words in question]
        assert numbers(worked)[-1] == WORKED[kind](*numbers(question)), worked
        kinds[kind] += 1
        forms["<cevap>" in worked, "<mantık>" in worked] += 1
    assert set(kinds) == set(WORKED)
    assert [forms[form] / 2000 for form in ((True, True), (True, False), (False, False))] == pytest.approx(
        [0.7, 0.2, 0.1], abs=0.03
    )


def test_a_slip_is_all_over_an_answer():
    """Nine in ten digits are other ones, so that nearly no result is right; both places say the same."""
    rng, right = np.random.default_rng(1), 0
    for _ in range(500):
        question, worked = turkish.example(rng, noise=1.0)
        [kind] = [words for words in WORKED if words in question]
        *_, before, last = numbers(worked)
        right += last == WORKED[kind](*numbers(question))
        assert "<cevap>" not in worked or before == last
    assert right < 50


def test_worked_answers_of_the_questions_and_their_pieces():
    pairs = turkish.solved()
    assert [question for question, _ in pairs] == [question for part in PARTS.values() for question, _ in part()]
    for (_, worked), truth in zip(pairs, [truth for part in PARTS.values() for _, truth in part()], strict=True):
        assert re.fullmatch(r"<mantık>(.*)</mantık> <cevap>(.*)</cevap>", worked)
        assert plain(worked.partition("<cevap>")[2].partition("<")[0], "tr") == truth
    known = set(turkish.vocabulary())
    texts = [text for pair in pairs for text in pair]
    assert all("".join(re.findall(turkish.PIECE, text)) == text for text in texts)
    assert {piece for text in texts for piece in re.findall(turkish.PIECE, text)} <= known
