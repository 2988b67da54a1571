"""Golden: the published test cases of math-verify against our equality; where the two disagree, who is right.

`golden/math_verify_cases.jsonl` holds facts from tests/test_*.py of https://github.com/huggingface/Math-Verify, commit
5d148cfaaf99214c2e4ffb4bc497ab042c592a7a, licence Apache-2.0: the two answers and whether that library's authors say
that they are equal, with the name of the test. Of its 269 cases these are left out, as they ask about more than that:

  18  answers spread over several boxes (the last box decides here)
  16  a number or letter inside prose, without a box, a formula or a stated final answer
   9  texts that the escapes of Python or LaTeX have garbled (a tab for the `\\t` of `\\text`)
   7  the same pair once more
   5  options of that library: one line only, one-sided comparison, variables under any name
   4  decimal commas, and spaces between thousands: a matter of the locale, which extraction knows
   4  equality up to some digits, or of approximations; equality is exact here
   4  chains of equations that contradict themselves (`5+5+1 = 7 = 11`), to read their last side
   2  a unit after the box, several formulas to choose from

Some of these are read by now: scripts/check_answers.py asks all 269, and docs/answers.md has how many agree.

Where a case is a whole response, its answer is its last box, its only formula or its stated final answer.
"""

import json
from pathlib import Path

import pytest

from ttrl_jax.reward.equivalence import classes
from ttrl_jax.reward.extract import Answer

CASES = [
    json.loads(line) for line in (Path(__file__).parent / "golden/math_verify_cases.jsonl").read_text().splitlines()
]

# (gold, target): who is right, and why. In each the library says that the two are equal, and we that they are not.
DISAGREEMENTS = {
    (r"$1 - \frac{1}{\mathrm{e}}$", r"$1 + \frac{1}{\mathrm{e}}$"): "we are: the signs differ",
    (
        "$(1,3)$",
        "${1,3}$",
    ): "we are: a pair has an order, an interval has ends; a set is neither",
    (r"x = -5,\ p = \frac{14}{3}", r"-5, \frac{14}{3}"): "we are: which value is whose is lost",
    (
        r"$(37,3,3,13),(17,3,3,7),(3,37,3,13),(3,17,3,7),(3,3,2,3)$",
        r"(3, 37, 3, 13), (3, 17, 3, 7), (3, 3, 2, 3), (3,17,3,7), (17,3,3,7), (37,3,3,13)",
    ): "they are, as solutions go; we keep a list that has an item twice apart, as roots may be meant",
}


def ours(case: dict) -> bool:
    ids = classes([Answer(case["gold"]), Answer(case["target"])])
    return ids[0] == ids[1]


def test_at_least_97_percent_agree() -> None:
    disagree = [case for case in CASES if ours(case) != case["equal"]]
    assert len(CASES) == 200
    assert len(disagree) <= 0.03 * len(CASES)
    assert {(case["gold"], case["target"]) for case in disagree} == set(DISAGREEMENTS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["test"])
def test_order_does_not_matter(case: dict) -> None:
    a, b = Answer(case["gold"]), Answer(case["target"])
    assert classes([a, b]) == classes([b, a])
