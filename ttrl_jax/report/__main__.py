"""Write a report on one or more runs: one HTML file that needs nothing else, neither a network nor this program.

    python -m ttrl_jax.report RUN [RUN ...] --out report.html

RUN is a run folder, of a run that is finished or not. The report has the results before and after, the curves side by
side, the checkpoints that one could choose, and the questions with their labels and generations.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.REPORT, doc=__doc__)

import sys

from absl import flags

from ttrl_jax import cli
from ttrl_jax.errors import InputError
from ttrl_jax.report.data import read_runs
from ttrl_jax.report.page import page
from ttrl_jax.report.rollouts import read_questions
from ttrl_jax.run import places
from ttrl_jax.run.metrics import write_text


def main(*paths: str) -> int:
    out = places.local(flags.FLAGS.out, flag="--out")
    if out.suffix != ".html":
        raise InputError(f"--out must be a file that ends in .html, got {flags.FLAGS.out!r}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; give the name of a file in it")
    places.require_writable(out.parent, flag="--out")
    runs = read_runs(paths)
    questions = [question for run in runs for question in read_questions(run)]
    write_text(out, page(runs, questions))
    for run in runs:
        for note in run.notes:
            print(f"{run.name}: {note}", file=sys.stderr)
    print(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.REPORT, arguments=ARGUMENTS))
