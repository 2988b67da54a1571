"""Make a table or a figure of the TTRL paper (arXiv 2504.16084), or of its replication on Turkish word problems.

    python scripts/study.py table1 --out runs/table1 [--models A,B] [--tasks aime=AIME-TTT.json,amc] [--seeds 0,1,2]
    python scripts/study.py figure6 --small --out runs/figure6 [--config.episodes=9]

Models and tasks are the paper's, by their names on the hub; --small takes the quickstart's in their place, on two
cores. Before anything starts, what lacks its model or its questions is refused. The runs go one after the other; how
long they take is said once three steps of the first are measured. The same command again goes on where it stopped, and
runs nothing twice. OUT gets STUDY.md, a CSV file of each table and SVG pictures. --config.a.b=value changes every run.

Studies:
{studies}

ablations takes settings, each as often as you like: --list KEY=A,B (one key at a time) and --grid KEY=A,B (crossed).
turkish takes --tasks turkish=DIR, with train.jsonl and test.jsonl, or turkish=FILE, from which it draws --parts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # the package of this checkout

from studies import curves, gains, turkish  # noqa: E402
from studies.options import Options, Study  # noqa: E402
from studies.runs import check, execute, follow, leave, numbers, run_settings, value_of  # noqa: E402
from studies.shown import write  # noqa: E402

from ttrl_jax import commands  # noqa: E402
from ttrl_jax.errors import InputError  # noqa: E402
from ttrl_jax.report.data import Group, read_run  # noqa: E402
from ttrl_jax.run import places  # noqa: E402

STUDIES: dict[str, Study] = {each.name: each for each in (*gains.STUDIES, *curves.STUDIES, *turkish.STUDIES)}


def main(arguments: Sequence[str]) -> int:
    name, options = parse(arguments)
    study = STUDIES[name]
    study.before(options)
    runs = study.runs(options)
    budgets = check(runs)
    places.require_writable(options.out, flag="--out")
    code = execute(runs, budgets, options.out) or follow(study.after(options))
    if code:
        return code
    arms: dict[tuple[str, ...], list] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(read_run(options.out / run.name, run.name))
    groups = {arm: Group(tuple(found)) for arm, found in arms.items()}
    print(write(study.show(groups, options), name, options.out), flush=True)
    print(f"wrote {name}.md, CSV and SVG files to {options.out}")
    return 0


def parse(arguments: Sequence[str]) -> tuple[str, Options]:
    """The study and its options. Raises InputError; ends the process where argparse does."""
    listed = "\n".join(f"  {study.name:<10} {study.what}" for study in STUDIES.values())
    doc = __doc__.replace("{studies}", listed)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=lambda path: places.local(path, flag="--out"), help="default: runs/study-NAME")
    parser.add_argument("--models", default="", help="hub names, folders or .gguf files, with commas between")
    parser.add_argument("--tasks", default="", help="names of configs, or NAME=PATH, with commas between")
    parser.add_argument("--seeds", default="0", help="whole numbers with commas between (%(default)s)")
    parser.add_argument("--small", action="store_true", help="the quickstart's models and questions")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=A,B", help="of ablations: crossed")
    parser.add_argument("--list", action="append", default=[], metavar="KEY=A,B", help="of ablations: one at a time")
    parser.add_argument("--parts", default="2000,598", help="of turkish: questions to draw, trained on and held out")
    given, changes = parser.parse_known_args(arguments)
    seeds, parts = numbers(given.seeds, "--seeds"), numbers(given.parts, "--parts")
    if len(parts) != 2:
        raise InputError(f"--parts takes two whole numbers such as 2000,598, got {given.parts!r}")
    if (given.grid or given.list) and given.study != "ablations":
        raise InputError(f"--grid and --list are for the study ablations, not for {given.study}")
    keys = run_settings(changes)
    tasks = dict(each.partition("=")[::2] for each in given.tasks.split(",") if each)
    models = tuple(each for each in given.models.split(",") if each)
    out = (given.out or Path("runs") / f"study-{given.study}").absolute()
    return given.study, Options(
        out, given.small, models, tasks, seeds, keys, _values(given.grid), _values(given.list), (parts[0], parts[1])
    )


def _values(given: Sequence[str]) -> dict[str, list[Any]]:
    """The keys and values of KEY=A,B arguments. Raises InputError."""
    known, found = commands.flat(commands.defaults()), {}
    for each in given:
        key, equals, texts = each.partition("=")
        if not equals or key not in known or not texts:
            raise InputError(f"{each!r} must be KEY=A,B with a key of configs/default.py and its values")
        found[key] = [value_of(text, like=known[key]) for text in texts.split(",")]
    return found


if __name__ == "__main__":
    leave(main)
