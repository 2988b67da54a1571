"""The tables of a pool."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ttrl_jax.reward.verdict import Settings
from ttrl_jax.run.choice import CHANGED
from ttrl_jax.run.diagnosis import LIMITS, Limits

from .pool import CALIBRATION, TEST, VARIANTS, Seen
from .pool_scores import (
    CANARIES,
    EPS,
    GAINED,
    GRIDS,
    SHARES,
    SILENT,
    Choice,
    brier,
    certified,
    choice,
    collapsed,
    fit,
    fit_choice,
    hits,
    isotonic,
    labels,
    level,
    logistic,
    reliability,
    verdict,
)
from .shown import NONE, Shown, Table

VERDICTS = ("learning", "converged", "stuck", "collapsing")
HALVES = (CALIBRATION, TEST)


def shown(runs: Sequence[Seen]) -> Shown:
    """All that a pool says, of the runs that are finished."""
    halves = {half: [seen for seen in runs if seen.half == half] for half in HALVES}
    limits = fit(halves[CALIBRATION], GRIDS) if halves[CALIBRATION] else LIMITS
    tables = [runs_table(runs, limits), limits_table(limits)]
    tables += [verdicts_table(half, halves[half], limits) for half in HALVES]
    tables += [choices_table(halves), *chance_tables(halves), certificate_table(halves)]
    return Shown(tables, {})


def runs_table(runs: Sequence[Seen], limits: Limits) -> Table:
    """What each run was and became."""
    rows = []
    for seen in runs:
        accuracies = [f"{seen.held_out[step]:.3f}" for step in (min(seen.held_out), max(seen.held_out))]
        said = [verdict(seen, 1.0, each).verdict for each in (LIMITS, limits)]
        kind = VARIANTS[seen.variant].what
        rows.append(
            [seen.half, seen.family, kind, str(seen.steps), *accuracies, "yes" if collapsed(seen) else "", *said]
        )
    head = ["half", "family", "setting", "steps", "held out before", "after", "collapsed", "verdict", "as fitted"]
    return Table("pool_runs", f"{len(runs)} runs; avg@k on the questions held out", head, rows)


def limits_table(limits: Limits) -> Table:
    """What `run/diagnosis.py` holds, and what the calibration half says."""
    rows = [[name, f"{vars(LIMITS)[name]:g}", f"{value:g}"] for name, value in dataclasses.asdict(limits).items()]
    title = f"limits of run/diagnosis.py, fitted on the calibration half: {', '.join(GRIDS)}"
    return Table("pool_limits", title, ["limit", "held there", "fitted"], rows)


def verdicts_table(half: str, runs: Sequence[Seen], limits: Limits) -> Table:
    """How often each verdict is right after a share of a run."""
    rows = []
    for name, each in (("held there", LIMITS), ("fitted", limits)):
        for share in SHARES:
            found = hits(runs, share, each)
            claims = [found.get(said, (0, 0)) for said in VERDICTS]
            total = [sum(counts) for counts in zip(*claims, strict=True)]
            cells = [_of(right, count) for right, count in (*claims, tuple(total))]
            rows.append([name, f"{share:.0%}", *cells, str(found.get(SILENT, (0, 0))[1])])
    title = f"verdicts on the {half} half that the truth at the end confirms, of those given"
    return Table(f"pool_verdicts_{half}", title, ["limits", "of a run", *VERDICTS, "all", SILENT], rows)


def choices_table(halves: dict[str, list[Seen]]) -> Table:
    """How often a choice is nearly the best."""
    rows, fitted = [], fit_choice(halves[CALIBRATION])
    for half, runs in halves.items():
        for kind, those in (("all", runs), ("collapsed", [seen for seen in runs if collapsed(seen)])):
            found = [made for seen in those if (made := choice(seen)) is not None]
            good = [sum(made.good for seen in those if (made := choice(seen, each))) for each in (CHANGED, fitted)]
            others = [sum(_alike(made, name) for made in found) for name in ("last", "start")]
            rows.append([half, kind, *(_of(count, len(found)) for count in (*good, *others))])
    title = (
        "runs whose chosen model has at least 0.9 of the best candidate's avg@k on the questions trained on; of the "
        f"clear labels at most {CHANGED:g} may have changed, as in run/choice.py, or as fitted on the calibration half "
        f"{fitted:g}"
    )
    head = ["half", "runs", "chosen by votes", "as fitted", "the last candidate", "the start"]
    return Table("pool_choices", title, head, rows)


def _alike(made: Choice, name: str) -> bool:
    return dataclasses.replace(made, chosen=getattr(made, name)).good


def chance_tables(halves: dict[str, list[Seen]]) -> list[Table]:
    """The curve from the clarity of a vote to how likely its label is right: of all runs, and of those alone that have
    not collapsed, in which agreement says nothing any more."""
    rows, bins = [], []
    for kind, those in (("all", lambda seen: True), ("not collapsed", lambda seen: not collapsed(seen))):
        (z, right, weights), (tested, truth, scale) = (labels(list(filter(those, halves[half]))) for half in HALVES)
        if not len(z) or not len(tested):
            continue
        slope, offset = logistic(z, right, weights)
        own, fitted = Settings(), _curve(tested, slope, offset)
        made = {
            "the share of right labels of the calibration half": np.average(right, weights=weights),
            f"as it is: soft_slope {own.soft_slope:g}, soft_offset {own.soft_offset:g}": _curve(
                tested, own.soft_slope, own.soft_offset
            ),
            f"fitted: soft_slope {slope:.3f}, soft_offset {offset:.3f}": fitted,
            "isotonic": level(tested, *isotonic(z, right, weights)),
        }
        rows += [[kind, name, f"{brier(chance, truth, scale):.4f}"] for name, chance in made.items()]
        for begin, *numbers in reliability(fitted, truth, scale):
            bins.append([kind, f"{begin:.1f}", *(f"{number:.3f}" for number in numbers)])
    title = (
        "how likely a label is right by its votes: set on the calibration half, scored on the test half, each run alike"
    )
    head = ["runs", "chance from", "share of visits", "mean chance", "right labels"]
    return [
        Table("pool_soft", title, ["runs", "chance", "Brier score"], rows),
        Table("pool_reliability", "the fitted curves on the test half", head, bins),
    ]


def _curve(z, slope: float, offset: float):
    return 1 / (1 + np.exp(-(slope * z + offset)))


def certificate_table(halves: dict[str, list[Seen]]) -> Table:
    """What the certificate returns."""
    rows = []
    for name, runs in (*halves.items(), ("both", [seen for each in halves.values() for seen in each])):
        found = certified(runs)
        rows.append(
            [
                name, str(found.draws), _of(found.worse_returned, found.draws), _of(found.worse_returned, found.worse),
                _of(found.better_returned, found.better),
            ]
        )  # fmt: skip
    head = [
        "half", "draws", f"return a model that is worse by more than {EPS:g}", "of draws of such models",
        f"return the trained model, of draws on runs that gain {GAINED:g}",
    ]  # fmt: skip
    return Table(
        "pool_certificate", f"certificates of {CANARIES} canaries, on the other questions held out", head, rows
    )


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else NONE
