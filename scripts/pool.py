"""Train a pool of runs that sets and tests limits: of the diagnosis, the chosen checkpoint, soft and the certificate.

    python scripts/pool.py --out runs/pool [--families noise,mixed] [--variants base,fast] [--seeds 0,1]
        [--config.a.b=value ...]
    python scripts/pool.py --out runs/pool --report

About 80 runs of up to a minute on 2 free cores: families of start models (configs/families.py and others, of which
those are left out whose model is not here), each with all settings. Limits are set on the runs of one half of the
families, and tested on those of the other. How long it takes is said before it starts; more than 8 hours are refused.
The order is such that a pool that was stopped is of use: each setting with all families before the next one. The same
command again goes on where it stopped, and runs nothing twice. A run that fails is named and left out.

--report: of the runs that are finished print the tables, and write POOL.md and a CSV file of each; a pool that is done
does that by itself. No run is needed for it any more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # the package of this checkout

from studies.pool import FAMILIES, VARIANTS, read, runs_of, seconds, write_questions  # noqa: E402
from studies.pool_shown import shown  # noqa: E402
from studies.runs import Run, check, execute, finished, leave, names, numbers, run_settings, spoken  # noqa: E402
from studies.shown import write  # noqa: E402

from ttrl_jax.errors import InputError  # noqa: E402
from ttrl_jax.run import places  # noqa: E402

MOST_HOURS = 8
_SIGNALLED = 128  # exit codes from here on: a signal came


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=lambda path: places.local(path, flag="--out"))
    parser.add_argument("--families", default=",".join(FAMILIES), help="with commas between (%(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="settings (%(default)s)")
    parser.add_argument("--seeds", default="0", help="whole numbers with commas between (%(default)s)")
    parser.add_argument("--report", action="store_true", help="only the tables, of what is finished")
    given, changes = parser.parse_known_args(arguments)
    out, keys = given.out.absolute(), run_settings(changes)
    families, variants = names(given.families, "--families", FAMILIES), names(given.variants, "--variants", VARIANTS)
    runs, code = runs_of(out, families, variants, keys, seeds=numbers(given.seeds, "--seeds")), 0
    if not given.report:
        for name in families:
            if not FAMILIES[name].there:
                print(f"== {name} is left out: its model is not here", flush=True)
        code = train([run for run in runs if FAMILIES[run.arm[0]].there], out)
    return code if code >= _SIGNALLED else report(runs, out) or code


def train(runs: Sequence[Run], out: Path) -> int:
    """Train what is missing -> 0, 1 if a run failed, or the exit code of the run that a signal ended."""
    places.require_writable(out, flag="--out")
    write_questions(out)
    budgets = check(runs)
    missing = [run for run in runs if not finished(run, out)]
    asked = seconds(missing, budgets)
    print(f"{len(missing)} of {len(runs)} runs are missing: about {spoken(asked)} on 2 free cores", flush=True)
    if asked > 3600 * MOST_HOURS:
        raise InputError(f"that is more than {MOST_HOURS} hours; choose fewer by --families and --variants")
    failed = []
    for i, run in enumerate(missing):
        print(f"== {i + 1} of {len(missing)}, {spoken(seconds(missing[i:], budgets))} left", flush=True)
        code = execute([run], budgets, out)
        if code >= _SIGNALLED or code < 0:
            return code if code > 0 else _SIGNALLED - code
        if code:
            failed.append(run.name)
            print(f"== {run.name} failed with exit code {code}; the pool goes on without it", flush=True)
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(failed)}")
    return min(1, len(failed))


def report(runs: Sequence[Run], out: Path) -> int:
    """Print and write what the finished runs say."""
    there = [run for run in runs if finished(run, out)]
    if not there:
        raise InputError(f"{out} has no finished run of this pool; leave --report out to train it")
    print(write(shown([read(run, out) for run in there]), "POOL", out), flush=True)
    print(f"wrote POOL.md and CSV files of {len(there)} of {len(runs)} runs to {out}")
    return 0


if __name__ == "__main__":
    leave(main)
