"""Built-in procedural tasks: questions with known answers, without a network, the same on every machine.

`sums` asks for the sum of two two-digit numbers in the words of a school problem. Its number pairs are split
in three: pairs to train on (64 questions), held-out pairs (256 questions), and the rest, from which the
quickstart's model learned to write worked answers. The split is of unordered pairs, so no question of one
part is a question of another with its two numbers swapped.

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

# Cuts a text of the task into word-level pieces that join back to the exact text; each digit is one piece.
PIECE = r" ?\\boxed\{| ?[A-Za-z]+| ?[+=]|[0-9]|."

TRAIN_QUESTIONS = 64
HELD_OUT_QUESTIONS = 256
TRAIN_FACTS = 53  # of `digits`; with both orders of their numbers 96 questions


def worked(a: int, b: int, answer: str) -> str:
    """The worked answer to a + b that ends in `answer`, for example "37 + 48 = \\boxed{85}"."""
    return WORKED.format(a=a, b=b, answer=answer)


def vocabulary() -> list[str]:
    """All pieces of questions and worked answers, sorted. Special tokens are the tokenizer maker's affair."""
    texts = [
        template.format(name=name, other=name, things=things, a=10, b=10)
        for template in TEMPLATES
        for name in NAMES
        for things in THINGS
    ]
    found = {piece for text in [*texts, worked(10, 10, "20")] for piece in re.findall(PIECE, text)}
    return sorted(found | set("0123456789 "))


def sums_example(rng: np.random.Generator, *, noise: float) -> tuple[str, str]:
    """Draw a question and its worked answer from the pairs that neither question set uses.

    noise: probability of each digit of the boxed answer to be replaced by a digit drawn uniformly.
    """
    pretraining = _pairs()[TRAIN_QUESTIONS + HELD_OUT_QUESTIONS :]
    a, b = _either_order(pretraining[rng.integers(len(pretraining))], rng)
    replaced = "".join(str(rng.integers(10)) if rng.random() < noise else digit for digit in str(a + b))
    return _question(a, b, rng), worked(a, b, replaced)


def _sums_train() -> list[tuple[str, str]]:
    return _sums(_pairs()[:TRAIN_QUESTIONS], seed=1)


def _sums_held_out() -> list[tuple[str, str]]:
    return _sums(_pairs()[TRAIN_QUESTIONS : TRAIN_QUESTIONS + HELD_OUT_QUESTIONS], seed=2)


def _digits_train() -> list[tuple[str, str]]:
    return _digits(_digit_facts()[:TRAIN_FACTS])


def _digits_held_out() -> list[tuple[str, str]]:
    return _digits(_digit_facts()[TRAIN_FACTS:])


# The names that data.path accepts after "builtin:". Each makes its (question, truth) pairs.
TASKS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "sums.train": _sums_train,
    "sums.held_out": _sums_held_out,
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
