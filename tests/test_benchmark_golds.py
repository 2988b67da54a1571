r"""Semantics, on the paper's data files (TTRL_DATA): a group that agrees on the truth is right in any spelling."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from ttrl_jax.reward.audit import audit
from ttrl_jax.reward.equivalence import classes, cluster, same
from ttrl_jax.reward.extract import Answer, extract
from ttrl_jax.reward.score import score, select
from ttrl_jax.reward.vote import vote

FILES = {"AIME-TTT.json": 30, "MATH-TTT.json": 500, "GSM8K-test-300.json": 300}
# Distinct truths of a file in one class: none but these of MATH-500. They belong to different questions; the two are
# the same answer to one.
MERGED = {
    ("36", r"36^\circ"): "a degree sign does not count",
    ("30", r"30^\circ"): "a degree sign does not count",
    ("90", r"90^\circ"): "a degree sign does not count",
    ("120", r"120^\circ"): "a degree sign does not count",
    ("36", r"\$36"): "a currency sign does not count",
    (r"36^\circ", r"\$36"): "neither of them counts: units are dropped, not compared",
    ("15", r"15\mbox{ cm}^2"): "a unit does not count",
    ("10080", r"10,\!080"): "a thousands comma",
    ("5", "x=5"): "a name before the answer",
    ("-2,1", "1,-2"): "a list of solutions has no order",
    (r"2 \sqrt{5}", r"2\sqrt{5}"): "a space",
    (r"\frac14", r"\frac{1}{4}"): "braces of one digit",
}
# And where the two are all that was voted: a rule of the ballot, which 36 would undo.
IN_A_PAIR = {("40", "40_9"): "a base beside its bare digits"}


def truths(folder: Path, file: str) -> list[str]:
    found = [row["answer"].rpartition("####")[2].strip() for row in json.loads((folder / file).read_text())]
    assert len(found) == FILES[file]
    return found


def spellings(truth: str) -> list[str]:
    """The same answer in other spellings, by rule."""
    found = [f"${truth}$", f"{truth}.", rf"\, {truth} \;", truth.replace(" ", "  ") + " "]
    found.append(truth.replace(r"\frac", r"\dfrac") if r"\frac" in truth else truth.replace(r"\dfrac", r"\tfrac"))
    if not re.search(r"=|\\in\b", truth):
        found += [f"x={truth}", f"x = {truth}", f"f(x) = {truth}"]
    if re.fullmatch("-?[0-9]+", truth):
        found += [f"{truth}.0", f"{truth}.00", rf"{truth} \text{{ units}}", rf"\text{{{truth}}}", f"{int(truth):,}"]
        found += [f"{2 * int(truth)}/2", rf"\frac{{{3 * int(truth)}}}{{3}}", rf"{truth}\text{{ cm}}^2", rf"\${truth}"]
    if match := re.fullmatch(r"(-?)\\d?frac\{([0-9]+)\}\{([0-9]+)\}", truth):
        found += [f"{match[1]}{match[2]}/{match[3]}", rf"\frac{{{match[1]}{match[2]}}}{{{match[3]}}}"]
    if truth.startswith("("):
        found += [rf"\left{truth[:-1]}\right{truth[-1]}"] if r"\cup" not in truth and truth[-1] in ")]" else []
    return [text for text in dict.fromkeys(found) if text != truth]


@pytest.mark.parametrize("file", FILES)
def test_a_unanimous_group_is_right(file: str, ttrl_data: Path) -> None:
    golds = truths(ttrl_data, file)
    ballots = [vote([extract(rf"It is \boxed{{{t}}}.", strategies=("boxed",), thinking=False)] * 4) for t in golds]
    labels = [b.label for b in ballots]
    rewards = score(ballots, labels)
    assert [b.answers[b.label].text for b in ballots] == golds
    assert rewards.shape == (FILES[file], 4) and rewards.all()
    metrics = audit(ballots, labels, rewards, select(rewards, samples=2), golds)
    assert metrics["label_accuracy"] == metrics["ground_truth_reward"] == metrics["pass@2"] == 1.0


@pytest.mark.parametrize("file", FILES)
def test_a_group_of_many_spellings_is_right(file: str, ttrl_data: Path) -> None:
    golds = truths(ttrl_data, file)
    split = []
    for truth in golds:
        others = spellings(truth)
        assert len(others) >= 4
        ballot = vote([Answer(text) for text in (*others, truth, "-987654")])
        if ballot.counts != (len(others) + 1, 1) or ballot.label != 0 or not same(Answer(truth), ballot.answers[0]):
            split.append((truth, [(text, i) for text, i in zip(others, ballot.classes, strict=False) if i]))
    assert split == []


@pytest.mark.parametrize("file", FILES)
def test_every_merged_pair_of_truths_has_a_reason(file: str, ttrl_data: Path) -> None:
    golds = sorted(set(truths(ttrl_data, file)))
    clusters = cluster([Answer(text) for text in golds])
    assert clusters.undecided == 0
    together = {
        frozenset((a, b))
        for (a, i), (b, j) in combinations(zip(golds, clusters.ids, strict=True), 2)
        if i == j
    }  # fmt: skip
    assert together == (set(map(frozenset, MERGED)) if file == "MATH-TTT.json" else set())


@pytest.mark.parametrize("file", FILES)
def test_pairs_of_truths_do_not_depend_on_their_order(file: str, ttrl_data: Path) -> None:
    golds = sorted(set(truths(ttrl_data, file)))
    for a, b in combinations(golds, 2):
        found = classes([Answer(a), Answer(b)])
        assert found == classes([Answer(b), Answer(a)])
        assert (found == [0, 0]) is same(Answer(a), Answer(b)) is same(Answer(b), Answer(a))
        assert (found == [0, 0]) == (file == "MATH-TTT.json" and not {(a, b), (b, a)}.isdisjoint(MERGED | IN_A_PAIR))
