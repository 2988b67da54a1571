"""Compare what teaches a model from its own votes, at equal cost, on models whose errors are known.

    python scripts/referee.py --out runs/referee [--families noise,belief] [--methods majority,scrl,oracle]
        [--seeds 0,1,2] [--config.a.b=value ...]

Methods (docs/algorithms.md):
{methods}

By default all but the last {extras}, which show what published forms add. Families: configs/families.py. A run has 48
steps of 8 questions x 16 votes. All runs sample equally many responses to train on: `offline` votes once on all
questions before it begins, and has one episode less for it. Another forward pass over the votes, which `negative` and
`scrl` need, is not counted, nor are evaluations.

A run takes about {seconds} seconds on 2 free cores, so the whole of it, {count} runs, about {hours:.1f} hours. The runs
go one after the other, all of the first seed first; after each seed OUT gets REFEREE.md, CSV files and referee.svg. The
same command again goes on where it stopped, and with more families, methods or seeds adds theirs.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # the package of this checkout

from studies.ruling import (  # noqa: E402
    HELD_OUT,
    SETS,
    Results,
    family_table,
    gains_table,
    harm_table,
    partition_table,
    picture,
)
from studies.runs import Run, check, config_of, execute, finished, leave, names, numbers, run_settings, spoken  # noqa: E402
from studies.shown import Shown, write  # noqa: E402

from ttrl_jax.errors import InputError  # noqa: E402
from ttrl_jax.report.data import Group, read_run  # noqa: E402
from ttrl_jax.run import places  # noqa: E402
from ttrl_jax.run.metrics import write_text  # noqa: E402

FAMILIES = ("noise", "belief", "mixed", "half_known")
SEEDS = (0, 1, 2)
SECONDS = 40  # of a run


@dataclass(frozen=True)
class Method:
    """What makes the rewards, or the advantages, of a run."""

    title: str
    changes: dict[str, Any] = field(default_factory=dict)  # of the config
    rule: bool = True  # learns from votes: neither a control, nor by the truth, nor a form that only shows a cost


METHODS = {
    "majority": Method("the vote (TTRL)"),
    **{
        rule: Method(f"judge.rule={rule}", {"judge.rule": rule})
        for rule in ("vote_share", "gate", "negative", "scrl", "guard", "best_of", "soft")
    },
    "offline": Method("the start model's vote, never renewed", {"reward.label": "offline"}),
    "entropic": Method("the vote, with train.advantage=entropic", {"train.advantage": "entropic"}),
    "offline_entropic": Method(
        "offline and entropic together", {"reward.label": "offline", "train.advantage": "entropic"}
    ),
    "random": Method("random answers (control)", {"reward.label": "random"}, rule=False),
    "format": Method("any answer earns 1 (control)", {"judge.rule": "answered"}, rule=False),
    "oracle": Method("true answers", {"reward.label": "truth"}, rule=False),
    "scrl_published": Method(
        "scrl, and -1 without an answer", {"judge.rule": "scrl", "judge.no_answer_reward": -1.0}, rule=False
    ),
    "majority_published": Method(
        "the control of that: the vote, and -1 without", {"judge.no_answer_reward": -1.0}, rule=False
    ),
    "guard_published": Method(
        "guard as its published scripts run it: they train plain TTRL, so this is `majority`", rule=False
    ),
}
EXTRAS = tuple(name for name in METHODS if name.endswith("_published"))
DEFAULT = tuple(name for name in METHODS if name not in EXTRAS)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    out: Path
    families: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    changes: dict[str, Any]  # of every run


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    runs = runs_of(options)
    budgets = check(runs)
    places.require_writable(options.out, flag="--out")
    missing = [run for run in runs if not finished(run, options.out)]
    print(f"{len(missing)} of {len(runs)} runs are missing: at {SECONDS} s a run {spoken(SECONDS * len(missing))}")
    for seed in options.seeds:
        code = execute([run for run in runs if run.seed == seed], budgets, options.out)
        if code:
            return code
        text = show(options, [each for each in options.seeds if options.seeds.index(each) <= options.seeds.index(seed)])
    print(text, flush=True)
    print(f"wrote REFEREE.md, CSV files and referee.svg to {options.out}")
    return 0


def runs_of(options: Options) -> list[Run]:
    """The runs, of the first seed first. Methods of the same settings share one."""
    found = {
        run.name: run
        for seed in options.seeds
        for family in options.families
        for method in options.methods
        for run in [run_of(options, family, method, seed)]
    }
    return list(found.values())


def run_of(options: Options, family: str, method: str, seed: int) -> Run:
    """The run of a method on a family. Raises InputError where the command line sets what the methods differ in."""
    own = METHODS[method].changes
    first = next(name for name, each in METHODS.items() if each.changes == own)
    run = Run(f"{family}-{first}-seed{seed}", (family, first), seed, f"configs/families.py:{family}", options.changes)
    differing = {key for each in METHODS.values() for key in each.changes}
    if told := sorted(differing & set(options.changes)):
        raise InputError(f"--config.{told[0]} is what the methods differ in; choose by --methods")
    if own.get("reward.label") == "offline":
        own = own | {"episodes": config_of(run).episodes - 1}  # the votes of the start model are the other one
    return replace(run, changes={**options.changes, **own})


def show(options: Options, seeds: Sequence[int]) -> str:
    """Write the tables and the picture of these seeds -> the text of REFEREE.md."""
    results: Results = {
        (family, method): Group(
            tuple(
                read_run(options.out / name, name)
                for name in (run_of(options, family, method, seed).name for seed in seeds)
            )
        )
        for family in options.families
        for method in options.methods
    }
    rules = [method for method in options.methods if METHODS[method].rule]
    tables = [gains_table(results, task) for task in SETS] + [harm_table(results, rules, task) for task in SETS]
    tables += [partition_table(results)]
    tables += [family_table(results, family) for family in options.families]
    said = [f"- `{method}`: {METHODS[method].title}." for method in options.methods]
    said.append(f"- Seeds: {', '.join(map(str, seeds))}; of several the mean, with the lowest and the highest.")
    text = write(Shown(tables, {}, said), "REFEREE", options.out)
    write_text(options.out / "referee.svg", picture(results, HELD_OUT))
    return text


def parse(arguments: Sequence[str]) -> Options:
    """The options. Raises InputError; ends the process where argparse does."""
    methods, whole = METHODS.items(), len(DEFAULT) * len(FAMILIES) * len(SEEDS)
    doc = __doc__.format(
        methods="\n".join(f"  {name:<18} {method.title}" for name, method in methods),
        extras=len(EXTRAS),
        seconds=SECONDS,
        count=whole,
        hours=whole * SECONDS / 3600,
    )
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/referee", help="folder for the runs and what is made of them")
    parser.add_argument("--families", default=",".join(FAMILIES), help="with commas between (%(default)s)")
    parser.add_argument("--methods", default=",".join(DEFAULT), help="with commas between (%(default)s)")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="with commas between (%(default)s)")
    given, changes = parser.parse_known_args(arguments)
    families, methods = names(given.families, "--families", FAMILIES), names(given.methods, "--methods", METHODS)
    seeds, keys = numbers(given.seeds, "--seeds"), run_settings(changes)
    out = places.local(given.out, flag="--out").absolute()
    return Options(out, families, methods, seeds, keys)


if __name__ == "__main__":
    leave(main)
