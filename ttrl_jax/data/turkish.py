"""Turkish word problems with known answers: the built-in task `turkish`, the same on every machine.

Sixteen kinds of question: sums, differences, products, divisions that come out, prices in lira, and some in two steps.
Numbers are written as Turkish writes them (1.250 and 12,50), truths in English as all truths are; every answer is a
whole number. The questions to train on (96) and the held-out ones (192) have each kind equally often, and no two
questions have the same numbers.

Worked answers, for a small model to learn from, are of other numbers. Most are in the format that the replication asks
for, some have the tags of the answer alone, and some have none.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

TRAIN_QUESTIONS = 96
HELD_OUT_QUESTIONS = 192

# Suffixes follow the vowels of a word, so what a question needs of a word stands beside it. A name: whose.
NAMES = {
    "Ayşe": "Ayşe'nin",
    "Ali": "Ali'nin",
    "Zeynep": "Zeynep'in",
    "Mehmet": "Mehmet'in",
    "Elif": "Elif'in",
    "Murat": "Murat'ın",
    "Fatma": "Fatma'nın",
    "Umut": "Umut'un",
    "Gül": "Gül'ün",
    "Çağla": "Çağla'nın",
}
# A thing: the thing of somebody.
THINGS = {
    "elma": "elması",
    "ceviz": "cevizi",
    "kalem": "kalemi",
    "boncuk": "boncuğu",
    "bilye": "bilyesi",
    "düğme": "düğmesi",
    "çıkartma": "çıkartması",
    "balon": "balonu",
}


@dataclass(frozen=True)
class _Kind:
    """A kind of question."""

    text: str  # with {name}, {whose}, {thing}, {its}, the numbers {a}, {b}, {c}, and {product}, which is a times b
    numbers: tuple[Sequence[int], ...]  # the values that a, b and c are drawn from
    answer: Callable[..., int]  # of these numbers
    work: str  # how one comes to it, up to its last "="


KINDS = (
    _Kind(
        "{whose} {a} {its} vardı. Annesi ona {b} {thing} daha aldı. {whose} şimdi kaç {its} var?",
        (range(15, 90), range(12, 60)),
        lambda a, b: a + b,
        "{a} + {b}",
    ),
    _Kind(
        "{whose} {a} {its} vardı. {b} tanesini kardeşine verdi. {whose} kaç {its} kaldı?",
        (range(45, 99), range(11, 44)),
        lambda a, b: a - b,
        "{a} - {b}",
    ),
    _Kind(
        "Bir kutuda {a} {thing} var. Böyle {b} kutuda toplam kaç {thing} vardır?",
        (range(12, 50), range(3, 10)),
        lambda a, b: a * b,
        "{a} * {b}",
    ),
    _Kind(
        "{product} {thing} {b} çocuğa eşit olarak paylaştırıldı. Her çocuk kaç {thing} aldı?",
        (range(6, 25), range(3, 13)),
        lambda a, b: a,
        "{product} / {b}",
    ),
    _Kind(
        "{name} tanesi {a} lira olan ekmeklerden {b} tane aldı. {name} toplam kaç lira ödedi?",
        (range(8, 25), range(3, 13)),
        lambda a, b: a * b,
        "{a} * {b}",
    ),
    _Kind(
        "{name} tanesi {a} lira olan defterlerden {b} tane aldı ve satıcıya 200 lira verdi. "
        "{name} kaç lira para üstü aldı?",
        (range(15, 48), range(2, 5)),
        lambda a, b: 200 - a * b,
        "{a} * {b} = {product}, 200 - {product}",
    ),
    _Kind(
        "Bir stadyumda cumartesi günkü maçı {a}, pazar günkü maçı {b} kişi izledi. "
        "İki günde toplam kaç kişi maç izledi?",
        (range(1050, 9000, 50), range(1020, 6000, 20)),
        lambda a, b: a + b,
        "{a} + {b}",
    ),
    _Kind(
        "Bir depoda {a} kilogram un vardı. Bu unun {b} kilogramı satıldı. Depoda kaç kilogram un kaldı?",
        (range(2100, 6000, 25), range(350, 2000, 10)),
        lambda a, b: a - b,
        "{a} - {b}",
    ),
    _Kind(
        "{name} her gün {a} sayfa kitap okuyor. {name} {b} günde kaç sayfa kitap okur?",
        (range(14, 40), range(5, 15)),
        lambda a, b: a * b,
        "{a} * {b}",
    ),
    _Kind(
        "{name} {product} sayfalık bir kitabı her gün {b} sayfa okuyarak bitirdi. {name} bu kitabı kaç günde bitirdi?",
        (range(5, 16), range(11, 30)),
        lambda a, b: a,
        "{product} / {b}",
    ),
    _Kind(
        "Bir bisikletin fiyatı {a} liradır. {name} bisiklet için {b} lira biriktirdi. "
        "{whose} kaç liraya daha ihtiyacı var?",
        (range(3250, 7000, 50), range(1100, 3200, 25)),
        lambda a, b: a - b,
        "{a} - {b}",
    ),
    _Kind(
        "Bir simidin fiyatı {a},50 liradır. {name} {b} simit alırsa toplam kaç lira öder?",
        (range(9, 20), range(2, 15, 2)),
        lambda a, b: a * b + b // 2,
        "{a},50 * {b}",
    ),
    _Kind(
        "Bir çiftlikte {a} tavuk ve {b} koyun var. Bu hayvanların toplam kaç ayağı vardır?",
        (range(8, 40), range(5, 30)),
        lambda a, b: 2 * a + 4 * b,
        "2 * {a} + 4 * {b}",
    ),
    _Kind(
        "Bir otobüste {a} yolcu vardı. İlk durakta {b} yolcu indi, {c} yolcu bindi. Otobüste şimdi kaç yolcu var?",
        (range(24, 50), range(5, 20), range(3, 16)),
        lambda a, b, c: a - b + c,
        "{a} - {b} + {c}",
    ),
    _Kind(
        "{name} her hafta {a} lira biriktirdi. {b} hafta sonra biriktirdiği paranın {c} lirasını harcadı. "
        "{whose} kaç lirası kaldı?",
        (range(40, 95, 5), range(4, 12), range(35, 150, 5)),
        lambda a, b, c: a * b - c,
        "{a} * {b} = {product}, {product} - {c}",
    ),
    _Kind(
        "Bir fabrikada her gün {a} oyuncak üretiliyor. {b} günde üretilen oyuncaklar {c} mağazaya eşit olarak "
        "dağıtıldı. Her mağazaya kaç oyuncak gönderildi?",
        (range(120, 1800, 60), range(3, 10), (4, 5, 6, 10)),
        lambda a, b, c: a * b // c,
        "{a} * {b} = {product}, {product} / {c}",
    ),
)


# The forms of worked answers, and the share of each.
FORMAT = "<mantık>{work}</mantık> <cevap>{answer}</cevap>"
FORMS = {
    FORMAT: 0.7,
    "{work} <cevap>{answer}</cevap>": 0.2,
    "{work}": 0.1,
}
# Cuts questions and worked answers into word-level pieces that join back to the exact text; each digit is one piece.
PIECE = r" ?</?[a-zı]+>| ?[A-Za-zÇĞİÖŞÜçğıöşü']+| ?[-+*/=]|[0-9]|."


def train() -> list[tuple[str, str]]:
    """(question, truth) of the questions to train on."""
    return [(question, truth) for question, truth, _ in _questions()[:TRAIN_QUESTIONS]]


def held_out() -> list[tuple[str, str]]:
    """(question, truth) of the held-out questions."""
    return [(question, truth) for question, truth, _ in _questions()[TRAIN_QUESTIONS:]]


def example(rng: np.random.Generator, *, noise: float) -> tuple[str, str]:
    """Draw a question and its worked answer, of numbers that no question to train on or held out has.

    noise: probability of each digit of the result to be replaced by a digit drawn uniformly, all over the answer.
    """
    while True:
        kind = KINDS[rng.integers(len(KINDS))]
        numbers = [values[rng.integers(len(values))] for values in kind.numbers]
        question = _question(kind, numbers, rng)
        if _shown(question) not in _asked():
            break
    digits = [str(rng.integers(10)) if rng.random() < noise else digit for digit in str(kind.answer(*numbers))]
    form = str(rng.choice(list(FORMS), p=list(FORMS.values())))
    return question, _worked(kind, numbers, int("".join(digits)), form)


def solved() -> list[tuple[str, str]]:
    """(question, worked answer in the format) of all questions."""
    return [(question, worked) for question, _, worked in _questions()]


def vocabulary() -> list[str]:
    """All pieces of questions and worked answers, sorted."""
    texts = list(FORMS)
    for kind in KINDS:
        texts.append(kind.work)
        for name in NAMES:
            texts += [
                kind.text.format(name=name, whose=NAMES[name], thing=thing, its=THINGS[thing], a=1, b=1, c=1, product=1)
                for thing in THINGS
            ]
    found = {piece for text in texts for piece in re.findall(PIECE, text)}
    return sorted(found | set("0123456789 .,"))


@functools.cache
def _asked() -> frozenset[tuple[str, ...]]:
    return frozenset(_shown(question) for question, _, _ in _questions())


@functools.cache
def _questions() -> tuple[tuple[str, str, str], ...]:
    """All questions with their truths and worked answers, the kinds in turn."""
    rng = np.random.default_rng(0)
    made: list[tuple[str, str, str]] = []
    seen: set[tuple[str, ...]] = set()
    while len(made) < TRAIN_QUESTIONS + HELD_OUT_QUESTIONS:
        kind = KINDS[len(made) % len(KINDS)]
        numbers = [values[rng.integers(len(values))] for values in kind.numbers]
        question = _question(kind, numbers, rng)
        shown = _shown(question)
        if shown not in seen:
            seen.add(shown)
            answer = kind.answer(*numbers)
            made.append((question, str(answer), _worked(kind, numbers, answer, FORMAT)))
    return tuple(made)


def _question(kind: _Kind, numbers: Sequence[int], rng: np.random.Generator) -> str:
    name, thing = (list(words)[rng.integers(len(words))] for words in (NAMES, THINGS))
    return kind.text.format(name=name, whose=NAMES[name], thing=thing, its=THINGS[thing], **_named(numbers))


def _worked(kind: _Kind, numbers: Sequence[int], answer: int, form: str) -> str:
    result = _written(answer)
    return form.format(work=f"{kind.work.format(**_named(numbers))} = {result}", answer=result)


def _named(numbers: Sequence[int]) -> dict[str, str]:
    named = dict(zip("abc", numbers, strict=False), product=numbers[0] * numbers[1])
    return {letter: _written(number) for letter, number in named.items()}


def _written(number: int) -> str:
    return f"{number:,}".replace(",", ".")


def _shown(question: str) -> tuple[str, ...]:
    """Its numbers, by which questions are told apart."""
    return tuple(sorted(re.findall(r"[0-9.,]*[0-9]", question)))
