"""Write a report on one or more runs: one HTML file that needs nothing else, neither a network nor this program.

    python -m ttrl_jax.report RUN                                # writes RUN/report.html
    python -m ttrl_jax.report RUN RUN EVALUATION --out report.html

RUN is a run folder, of a run that is finished or not; EVALUATION is a folder that the command evaluate wrote (those in
RUN/eval are read by themselves). The report says what came out and how sure that is; it has the curves of the runs,
their questions with every vote and response that was kept, and the models side by side. Runs that differ in their seed
alone are put together. --images FOLDER writes each chart as an SVG file besides.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.REPORT, doc=__doc__)

import sys
from pathlib import Path

from absl import flags

from ttrl_jax import cli
from ttrl_jax.errors import InputError
from ttrl_jax.report import models, svg
from ttrl_jax.report.data import by_seed, read_runs
from ttrl_jax.report.page import charts, page
from ttrl_jax.report.rollouts import read_questions
from ttrl_jax.run import folder, places
from ttrl_jax.run.metrics import write_text

_POINTS = 300  # of a line in an image


def main(*paths: str) -> int:
    given = [places.run_folder(path, flag="RUN") for path in paths]
    measured = [each for each in given if (each / models.RESULTS).is_file()]
    chosen = [path for path, each in zip(paths, given, strict=True) if each not in measured]
    out = _out(given)
    images = places.local(flags.FLAGS.images, flag="--images") if flags.FLAGS.images else None
    if images is not None:
        places.require_writable(images, flag="--images")
    places.require_writable(out.parent, flag="--out")
    runs = read_runs(chosen)
    found = [*models.of_runs(runs), *(models.read(each, each.absolute().name) for each in measured)]
    questions = [question for run in runs for question in read_questions(run)]
    text = page(runs, found, questions)
    write_text(out, text)
    for run in runs:
        for note in run.notes:
            print(f"{run.name}: {note}", file=sys.stderr)
    print(f"wrote {out}, {len(text.encode('utf-8', 'backslashreplace')) / 1e6:.1f} MB")
    if images is not None:
        groups = by_seed(runs)
        drawn = charts(groups, [*models.of_groups(groups), *found]).all
        for chart in drawn:
            write_text(images / f"{chart.name}.svg", svg.picture([chart], most=_POINTS))
        print(f"wrote {len(drawn)} images to {images}")
    return 0


def _out(given: list[Path]) -> Path:
    """What --out names, or report.html in the only folder that is given. Raises InputError."""
    if not flags.FLAGS.out:
        if len(given) > 1:
            raise InputError(f"{len(given)} folders are given: say with --out FILE.html where their report goes")
        if not any((given[0] / name).is_file() for name in (folder.CONFIG, models.RESULTS)):
            raise InputError(
                f"{given[0]} is not a run folder (no {folder.CONFIG}); give the --workdir of a training run"
            )
        return given[0] / "report.html"
    out = places.local(flags.FLAGS.out, flag="--out")
    if out.suffix != ".html":
        raise InputError(f"--out must be a file that ends in .html, got {flags.FLAGS.out!r}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; give the name of a file in it")
    return out


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.REPORT, arguments=ARGUMENTS))
