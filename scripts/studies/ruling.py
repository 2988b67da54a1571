"""What the referee shows: gains, what was harmed and learned question by question, and where the gain comes from."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import fmean
from typing import Any

from ttrl_jax.errors import InputError
from ttrl_jax.measure.start_votes import LABELS
from ttrl_jax.report.data import Group, Run, ends, metric_at
from ttrl_jax.report.table import spread
from ttrl_jax.run.files import ROLLOUTS
from ttrl_jax.run.metrics import read_lines
from ttrl_jax.tasks.sets import OWN

from .shown import NONE, Table, called

HELD_OUT = "held_out"
SETS = (HELD_OUT, OWN)
Results = Mapping[tuple[str, str], Group]  # (family, method) -> its runs, one of each seed


@dataclass(frozen=True)
class Changes:
    """What became of the majorities of a set of questions; `harmed` and `learned` are counts."""

    questions: int
    harmed: int  # right at the start and wrong at the end
    learned: int  # wrong at the start and right at the end


@dataclass(frozen=True)
class Partition:
    """Where the accuracy that true labels reach comes from (arXiv 2606.05932): the three sum to true - base."""

    null: float  # random - base: what comes with any reward
    elicit: float  # majority - random: what the votes know
    design: float  # true - majority: what only the truth tells


def majority_right(row: Mapping[str, Any]) -> bool:
    """Whether the most common answer of a row of `generations` is the truth; in a tie it is the one seen first."""
    counts, right = row["counts"], row["right"]
    return right is not None and counts.index(max(counts)) == right


def changes(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Changes:
    """What became of questions between two evaluations: rows of `generations`, with truths. Raises InputError where
    these are not of the same questions."""
    first, last = ({row["id"]: majority_right(row) for row in rows} for rows in (before, after))
    if first.keys() != last.keys() or not first:
        raise InputError("the first and the last evaluation must be of the same questions; delete the run's folder")
    pairs = [(right, last[question]) for question, right in first.items()]
    return Changes(len(pairs), pairs.count((True, False)), pairs.count((False, True)))


def partition(*, base: float, random: float, majority: float, true: float) -> Partition:
    """The partition of four accuracies: of the start model, and after training by labels of three kinds."""
    return Partition(random - base, majority - random, true - majority)


def changes_of(run: Run, task: str) -> Changes:
    """As `changes`, of the generations of a finished run. Raises InputError where they cannot be read."""
    found = []
    for step in ends(run, task) or ():
        path = run.path / ROLLOUTS / f"eval_{task}_{step:06}.jsonl"
        rows, damaged = read_lines(path)
        if damaged or not rows:
            raise InputError(f"{path} is missing or damaged; delete the folder of the run, and run it again")
        found.append(rows)
    return changes(*found)


def tokens_of(run: Run) -> int:
    """Tokens that a run has sampled to train on: those of its steps, and of the votes of the start model if it cast
    any. Evaluations are left out."""
    voted, _ = read_lines(run.path / LABELS)
    of_votes = sum(sample["tokens"] for row in voted for sample in row["samples"])
    return of_votes + sum(int(row.get("length/generated_tokens", 0)) for row in run.rows)


def _end(run: Run, task: str, kind: str, which: int) -> float:
    """A number kind@k of the first (0) or the last (-1) evaluation of a run."""
    numbers = run.evaluations[ends(run, task)[which]][task]
    return numbers[metric_at(numbers, kind)]


def partitions(results: Results, family: str, task: str) -> list[Partition]:
    """One of each seed that all three of random, majority and oracle have, in avg@k; none where one is missing."""
    arms = [results.get((family, method)) for method in ("random", "majority", "oracle")]
    if None in arms:
        return []
    random, majority, oracle = ({run.settings["seed"]: run for run in group.runs} for group in arms)
    return [
        partition(
            base=_end(majority[seed], task, "avg", 0),
            random=_end(random[seed], task, "avg", -1),
            majority=_end(majority[seed], task, "avg", -1),
            true=_end(oracle[seed], task, "avg", -1),
        )
        for seed in majority
        if seed in random and seed in oracle
    ]


# ---------------------------------------------------------------------- what is shown


def signed(values: Sequence[float]) -> str:
    """As `spread`, with signs: of differences."""
    if len(values) < 2:
        return f"{values[0]:+.3f}" if values else NONE
    return f"{fmean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def counted(values: Sequence[int], *, of: int) -> str:
    """The mean of counts, and the mean, lowest and highest share of `of` questions."""
    return f"{fmean(values):.3g} of {of}: {spread([value / of for value in values])}"


def family_table(results: Results, family: str) -> Table:
    """All that is measured of the methods on a family, on questions held out and trained on."""
    rows, names = [], ("avg", "pass")
    for (own, method), group in results.items():
        for task in SETS if own == family else ():
            numbers = group.runs[0].evaluations[ends(group.runs[0], task)[0]][task]
            names = metric_at(numbers, "avg"), metric_at(numbers, "pass")
            pairs = {
                kind: [(_end(run, task, kind, 0), _end(run, task, kind, -1)) for run in group.runs]
                for kind in ("avg", "pass")
            }
            found = [changes_of(run, task) for run in group.runs]
            rows.append(
                [
                    method,
                    called(task),
                    spread([before for before, _ in pairs["avg"]]),
                    spread([after for _, after in pairs["avg"]]),
                    signed([after - before for before, after in pairs["avg"]]),
                    counted([each.harmed for each in found], of=found[0].questions),
                    counted([each.learned for each in found], of=found[0].questions),
                    spread([before for before, _ in pairs["pass"]]),
                    spread([after for _, after in pairs["pass"]]),
                    f"{fmean(tokens_of(run) for run in group.runs):.0f}" if task == HELD_OUT else "",
                ]
            )
    ends_of = [f"{name} {when}" for name in names for when in ("before", "after")]
    head = ["method", "questions", *ends_of[:2], "gain", "harmed", "learned", *ends_of[2:], "tokens"]
    return Table(f"referee-{family}", f"### {family}", head, rows)


def gains_table(results: Results, task: str) -> Table:
    """The gain of each method on each family, and in brackets the share of questions harmed: means over seeds."""
    families, methods = (list(dict.fromkeys(arm[i] for arm in results)) for i in (0, 1))
    rows = []
    for method in methods:
        row = [method]
        for family in families:
            group = results.get((family, method))
            row.append(NONE if group is None else "{:+.3f} ({:.3f})".format(*mean_gain_and_harm(group, task)))
        rows.append(row)
    name = called(task)
    title = f"Gain in avg@k, and in brackets the share of questions harmed, {name}: means over the seeds"
    return Table(f"referee-gains-{task}", title, ["method", *families], rows)


def mean_gain_and_harm(group: Group, task: str) -> tuple[float, float]:
    """Means over the seeds: of the gain in avg@k, and of the share of questions that are harmed."""
    gain = fmean(_end(run, task, "avg", -1) - _end(run, task, "avg", 0) for run in group.runs)
    found = [changes_of(run, task) for run in group.runs]
    return gain, fmean(each.harmed / each.questions for each in found)


def elsewhere(results: Results, rules: Sequence[str], task: str) -> dict[str, str]:
    """family -> the one of `rules` with the least harm, summed over the other families; of equal ones that with the
    most gain there. Empty where there is but one family, or not all of the rules."""
    families = list(dict.fromkeys(family for family, _ in results))
    if len(families) < 2 or not rules or any((family, rule) not in results for family in families for rule in rules):
        return {}
    known = {arm: mean_gain_and_harm(results[arm], task) for arm in results if arm[1] in rules}

    def worth(rule: str, family: str) -> tuple[float, float]:
        others = [known[other, rule] for other in families if other != family]
        return round(sum(harm for _, harm in others), 9), -round(sum(gain for gain, _ in others), 9)

    return {family: min(rules, key=lambda rule: worth(rule, family)) for family in families}


def harm_table(results: Results, rules: Sequence[str], task: str) -> Table:
    """Of each method the mean gain over families, and the questions harmed and learned, summed over families; beside
    `majority`. The last row has for each family the rule of `rules` that does the least harm on the others."""
    families, methods = (list(dict.fromkeys(arm[i] for arm in results)) for i in (0, 1))
    arms = {method: {family: (family, method) for family in families} for method in methods}
    if found := elsewhere(results, rules, task):
        named = ", ".join(f"{family}: {rule}" for family, rule in found.items())
        arms[f"the least harm on the other families ({named})"] = {
            family: (family, found[family]) for family in families
        }
    totals = {
        name: _totals([results[arm] for arm in own.values()], task)
        for name, own in arms.items()
        if all(arm in results for arm in own.values())
    }
    rows = []
    for name, (gain, harmed, learned) in totals.items():
        beside = totals.get("majority", (0.0, 0.0, 0.0))[1]
        rows.append(
            [name, f"{gain:+.3f}", f"{harmed:.1f}", f"{harmed / beside:.2f}" if beside else NONE, f"{learned:.1f}"]
        )
    title = f"Over all families, {called(task)}: mean gain in avg@k, and questions of a family, summed"
    head = ["method", "mean gain", "harmed", "of those that majority harms", "learned"]
    return Table(f"referee-harm-{task}", title, head, rows)


def _totals(groups: Sequence[Group], task: str) -> tuple[float, float, float]:
    """Of a method on several families: mean gain, and sums of the questions harmed and learned, means over seeds."""
    found = [[changes_of(run, task) for run in group.runs] for group in groups]
    sums = (sum(fmean(getattr(each, what) for each in own) for own in found) for what in ("harmed", "learned"))
    return fmean(mean_gain_and_harm(group, task)[0] for group in groups), *sums


def partition_table(results: Results) -> Table:
    """The partition of each family, the mean of the seeds with the lowest and the highest."""
    rows = []
    for family in dict.fromkeys(family for family, _ in results):
        for task in SETS:
            found = partitions(results, family, task)
            cells = [signed([getattr(each, part) for each in found]) for part in ("null", "elicit", "design")]
            rows.append([family, called(task), *cells])
    head = ["family", "questions", "null: random - base", "elicit: majority - random", "design: true - majority"]
    return Table("referee-partition", "Where the accuracy that true labels reach comes from, in avg@k", head, rows)


# ---------------------------------------------------------------------- the picture

_NAMES, _PANEL, _ROW, _TOP = 120, 210, 22, 44  # pixels: of the names, a family's width, a method's height, the title
_SCALE = 90  # pixels of a gain or a harm of 1


def picture(results: Results, task: str) -> str:
    """An SVG file: of each family a panel, of each method a bar for the gain in avg@k and a thinner one, to the left,
    for the share of questions harmed; lines through the gain's bar go from the lowest to the highest seed."""
    families, methods = (list(dict.fromkeys(arm[i] for arm in results)) for i in (0, 1))
    width, height = _NAMES + _PANEL * len(families), _TOP + _ROW * len(methods) + 52
    body = f'<rect width="{width}" height="{height}" style="fill: var(--back)"/>'
    for row, method in enumerate(methods):
        body += _text(_NAMES - 8, _TOP + _ROW * row + 15, method, "end")
    for column, family in enumerate(families):
        zero, bottom = _NAMES + _PANEL * column + _PANEL / 2, _TOP + _ROW * len(methods)
        body += f'<text class="title" x="{zero:.0f}" y="18" text-anchor="middle">{html.escape(family)}</text>'
        for mark in (-1, -0.5, 0, 0.5, 1):
            x = zero + mark * _SCALE
            body += f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{bottom + 4}"/>'
            body += _text(x, _TOP - 9, f"{mark:g}", "middle")
        for row, method in enumerate(methods):
            if (family, method) in results:
                body += _bars(results[family, method], task, zero=zero, y=_TOP + _ROW * row)
    for place, (color, text) in enumerate(((0, f"gain in avg@k, {called(task)}"), (1, "share of questions harmed"))):
        body += f'<rect class="k{color}" x="{_NAMES + 250 * place}" y="{height - 26}" width="14" height="8"/>'
        body += _text(_NAMES + 250 * place + 20, height - 18, text, "start")
    files = resources.files("ttrl_jax.report")
    sheet = "".join(files.joinpath(name).read_text(encoding="utf-8") for name in ("colors.css", "svg.css"))
    size = f'viewBox="0 0 {width} {height}" style="width: {width}px; height: {height}px"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>\n{sheet}</style>\n{body}</svg>\n'


def _bars(group: Group, task: str, *, zero: float, y: float) -> str:
    gain, harm = mean_gain_and_harm(group, task)
    gains = [_end(run, task, "avg", -1) - _end(run, task, "avg", 0) for run in group.runs]
    low, high = (zero + _SCALE * end for end in (min(gains), max(gains)))
    left, title = zero + _SCALE * min(gain, 0), f"<title>gain {gain:+.3f}, harmed {harm:.3f}</title>"
    middle = y + 7
    return (
        f'<rect class="k0" x="{left:.1f}" y="{y + 3:.1f}" width="{_SCALE * abs(gain):.1f}" height="8">{title}</rect>'
        f'<line class="range k7" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        f'<rect class="k1" x="{zero - _SCALE * harm:.1f}" y="{y + 12:.1f}" width="{_SCALE * harm:.1f}" height="5">'
        f"{title}</rect>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
