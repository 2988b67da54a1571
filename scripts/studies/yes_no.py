"""A task with two answers, for the models of `sums`: whether the last digit but one of the sum is even.

The questions and the responses are those of `sums`; the number in the box is read as yes or no. Where a carry is
forgotten it is the wrong one.
"""

import re

from ttrl_jax import library as ttrl


def parity(number: str) -> str:
    """yes or no, of the digits of a number; 7 is 07."""
    return "no" if int(number.zfill(2)[-2]) % 2 else "yes"


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def extract(response: str) -> ttrl.Answer | None:
    """The answer of the last box; None where it has no whole number."""
    found = re.findall(r"\\boxed\{([0-9]{1,9})\}", response)
    return ttrl.Answer(parity(found[-1])) if found else None


def same(one: ttrl.Answer, other: ttrl.Answer) -> bool:
    return one.text == other.text


def get_task() -> ttrl.Task:
    return ttrl.Task("yes or no", messages, extract, classes=ttrl.classes_by(same), same=same)
