"""Built-in procedural tasks: questions with known answers, without a network, the same on every machine.

`sums` asks for the sum of two two-digit numbers in the words of a school problem. Its number pairs are split
in three: pairs to train on (64 questions), held-out pairs (256 questions), and the rest, from which the
quickstart's model learned to write worked answers. The split is of unordered pairs, so no question of one
part is a question of another with its two numbers swapped.

`carries` asks the same, of sums whose last digits make ten or more. Its worked answers go one of four ways, and the one
that is written most often forgets the carry. Its questions to train on (64) and held-out ones (256) are the first pairs
with a carry; the rest, and all pairs without one, are for its model to learn from.

`digits` asks bare sums and products of one-digit numbers, "7 * 8", which small pretrained models half know. The split
in questions to train on (96) and held-out ones (49) is of facts: 7 * 8 and 8 * 7 are in one part.

`turkish`, word problems in Turkish, is in turkish.py.
"""

import functools
import hashlib
import re
from collections.abc import Callable

import numpy as np

from ttrl_jax.data import turkish

# The texts of `sums`: all that a question or a worked answer can say is here.
NAMES = ("Tom", "Anna", "Ben", "Mia", "Leo", "Sara", "Ali", "Eva")
THINGS = ("apples", "books", "coins", "cards", "pens", "stamps", "shells", "marbles")
TEMPLATES = (
    "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
    "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
    "{name} has {a} {things} and {other} has {b}. How many {things} do they have together?",
    "There are {a} {things} in one box and {b} in another. How many {things} are there?",
    "{name} sold {a} {things} on Monday and {b} on Tuesday. How many {things} is that?",
)
WORKED = "{a} + {b} = \\boxed{{{answer}}}"

# The ways of worked answers to `carries`, and the share of each. The first word decides the way, so that the likeliest
# answer of all goes the likeliest way, although two answers in three go another.
FORGETFUL = "Digits"
WAYS = {
    FORGETFUL: ("Digits: {a1} + {b1} = {ones}, {a10} + {b10} = {tens}, \\boxed{{{answer}}}", 0.37),
    "Tens": ("Tens: {tens}0 + {ones} = \\boxed{{{answer}}}", 0.21),
    "Swapped": ("Swapped: {b} + {a} = \\boxed{{{answer}}}", 0.21),
    "Steps": ("Steps: {a} + {b10}0 = {most}, {most} + {b1} = \\boxed{{{answer}}}", 0.21),
}

# Cuts a text of the task into word-level pieces that join back to the exact text; each digit is one piece.
PIECE = r" ?\\boxed\{| ?[A-Za-z]+| ?[+=]|[0-9]|."

TRAIN_QUESTIONS = 64
HELD_OUT_QUESTIONS = 256
TRAIN_FACTS = 53  # of `digits`; with both orders of their numbers 96 questions


def worked(a: int, b: int, answer: str) -> str:
    """The worked answer to a + b that ends in `answer`, for example "37 + 48 = \\boxed{85}"."""
    return WORKED.format(a=a, b=b, answer=answer)


def worked_way(a: int, b: int, way: str, answer: str) -> str:
    """The worked answer to a + b that goes one of WAYS and ends in `answer`."""
    (a10, a1), (b10, b1) = divmod(a, 10), divmod(b, 10)
    numbers = {"a10": a10, "a1": a1, "b10": b10, "b1": b1, "tens": a10 + b10, "ones": a1 + b1, "most": a + 10 * b10}
    return WAYS[way][0].format(a=a, b=b, answer=answer, **numbers)


def answer_of_way(a: int, b: int, way: str) -> str:
    """What a way comes to without a slip: a + b, and without its carry if the way forgets it."""
    return f"{a // 10 + b // 10}{(a + b) % 10}" if way == FORGETFUL else str(a + b)


def vocabulary(task: str = "sums") -> list[str]:
    """All pieces of questions and worked answers of `sums` or `carries`, sorted.

    Special tokens are the tokenizer maker's affair.
    """
    answers = [worked(10, 10, "20")] if task == "sums" else [worked_way(10, 10, way, "20") for way in WAYS]
    texts = [
        template.format(name=name, other=name, things=things, a=10, b=10)
        for template in TEMPLATES
        for name in NAMES
        for things in THINGS
    ]
    found = {piece for text in [*texts, *answers] for piece in re.findall(PIECE, text)}
    return sorted(found | set("0123456789 "))


def sums_example(rng: np.random.Generator, *, noise: float) -> tuple[str, str]:
    """Draw a question and its worked answer from the pairs that neither question set uses.

    noise: probability of each digit of the boxed answer to be replaced by a digit drawn uniformly.
    """
    pretraining = _pairs()[TRAIN_QUESTIONS + HELD_OUT_QUESTIONS :]
    a, b = _either_order(pretraining[rng.integers(len(pretraining))], rng)
    replaced = _with_noise(str(a + b), rng, noise=noise)
    return _question(a, b, rng), worked(a, b, replaced)


def carries_example(rng: np.random.Generator, *, noise: float) -> tuple[str, str]:
    """Draw a question and a worked answer of one of WAYS from the pairs that neither question set of `carries` uses.

    noise: as in `sums_example`.
    """
    pretraining = _not_asked_in_carries()
    a, b = _either_order(pretraining[rng.integers(len(pretraining))], rng)
    way = str(rng.choice(list(WAYS), p=[share for _, share in WAYS.values()]))
    return _question(a, b, rng), worked_way(a, b, way, _with_noise(answer_of_way(a, b, way), rng, noise=noise))


def _with_noise(answer: str, rng: np.random.Generator, *, noise: float) -> str:
    return "".join(str(rng.integers(10)) if rng.random() < noise else digit for digit in answer)


def _sums_train() -> list[tuple[str, str]]:
    return _sums(_pairs()[:TRAIN_QUESTIONS], seed=1)


def _sums_held_out() -> list[tuple[str, str]]:
    return _sums(_pairs()[TRAIN_QUESTIONS : TRAIN_QUESTIONS + HELD_OUT_QUESTIONS], seed=2)


def _carries_train() -> list[tuple[str, str]]:
    return _sums(_carries()[:TRAIN_QUESTIONS], seed=3)


def _carries_held_out() -> list[tuple[str, str]]:
    return _sums(_carries()[TRAIN_QUESTIONS : TRAIN_QUESTIONS + HELD_OUT_QUESTIONS], seed=4)


def _digits_train() -> list[tuple[str, str]]:
    return _digits(_digit_facts()[:TRAIN_FACTS])


def _digits_held_out() -> list[tuple[str, str]]:
    return _digits(_digit_facts()[TRAIN_FACTS:])


# The names that data.path accepts after "builtin:". Each makes its (question, truth) pairs.
TASKS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "sums.train": _sums_train,
    "sums.held_out": _sums_held_out,
    "carries.train": _carries_train,
    "carries.held_out": _carries_held_out,
    "digits.train": _digits_train,
    "digits.held_out": _digits_held_out,
    "turkish.train": turkish.train,
    "turkish.held_out": turkish.held_out,
}


@functools.cache
def _pairs() -> tuple[tuple[int, int], ...]:
    """All unordered pairs of two-digit numbers, in a fixed shuffled order.

    The order is that of their hashes: a library's shuffle may change with its version, and then a model made
    with one version would have seen the held-out pairs of another.
    """
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    return tuple(sorted(pairs, key=lambda pair: _digest(f"sums {pair[0]} {pair[1]}")))


@functools.cache
def _carries() -> tuple[tuple[int, int], ...]:
    """The pairs whose last digits make ten or more, in the same order."""
    return tuple((a, b) for a, b in _pairs() if a % 10 + b % 10 >= 10)


@functools.cache
def _not_asked_in_carries() -> tuple[tuple[int, int], ...]:
    asked = set(_carries()[: TRAIN_QUESTIONS + HELD_OUT_QUESTIONS])
    return tuple(pair for pair in _pairs() if pair not in asked)


def _sums(pairs: tuple[tuple[int, int], ...], *, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    ordered = [_either_order(pair, rng) for pair in pairs]
    return [(_question(a, b, rng), str(a + b)) for a, b in ordered]


def _either_order(pair: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def _question(a: int, b: int, rng: np.random.Generator) -> str:
    name = rng.integers(len(NAMES))
    other = (name + rng.integers(1, len(NAMES))) % len(NAMES)  # another than `name`
    template, things = TEMPLATES[rng.integers(len(TEMPLATES))], THINGS[rng.integers(len(THINGS))]
    return template.format(name=NAMES[name], other=NAMES[other], things=things, a=a, b=b)


def _digit_facts() -> list[tuple[str, int, int]]:
    """Sums of 1 to 9 and products of 2 to 9, each with its smaller number first, in an order fixed by their hashes."""
    sums = [("+", a, b) for a in range(1, 10) for b in range(a, 10)]
    products = [("*", a, b) for a in range(2, 10) for b in range(a, 10)]
    return sorted(sums + products, key=lambda fact: _digest("digits {1} {0} {2}".format(*fact)))


def _digits(facts: list[tuple[str, int, int]]) -> list[tuple[str, str]]:
    asked = [(sign, *pair) for sign, a, b in facts for pair in dict.fromkeys([(a, b), (b, a)])]
    return [(f"{a} {sign} {b}", str(a + b if sign == "+" else a * b)) for sign, a, b in asked]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
