"""Train one config with labels of several kinds, or by several algorithms, and several seeds; make the table, the
pictures and the report.

    python scripts/compare.py --config configs/quickstart.py --out runs/compare [--config.a.b=value ...]
    python scripts/compare.py --config configs/quickstart.py --out runs/figure5 --algorithms grpo,ppo,prime

Labels: majority (the method), offline (voted once by the start model), random (the control) and truth (the oracle). The
model as it is, and its vote without any training (self-consistency), are the start of each run. Algorithms: those of
the key `algorithm`, by majority labels, beside GRPO by true ones, the oracle (figure 5 of arXiv 2504.16084). The runs,
one after the other, are OUT/<label or algorithm>-seed<n>; the same command again goes on where it stopped, and with
more labels, algorithms or seeds adds theirs. OUT gets table.md, curves.svg and report.html. The quickstart takes two to
six minutes a run on 2 cores.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # the package of this checkout

from studies.runs import train  # noqa: E402
from studies.shown import (  # noqa: E402
    ALGORITHMS,
    LABELS,
    ORACLE,
    POINTS,
    TITLES,
    Table,
    algorithms_table,
    called,
    mean_curve,
)

from ttrl_jax.errors import InputError  # noqa: E402
from ttrl_jax.report import svg  # noqa: E402
from ttrl_jax.report.chart import Chart, Line  # noqa: E402
from ttrl_jax.report.data import Group, by_seed, metric_at, read_runs  # noqa: E402
from ttrl_jax.report.table import spread  # noqa: E402
from ttrl_jax.run import places  # noqa: E402
from ttrl_jax.run.metrics import write_text  # noqa: E402
from ttrl_jax.tasks.sets import OWN  # noqa: E402

CURVES = {
    "labels that are the truth": "audit/label_accuracy",
    "rewards as the truth would give": "audit/reward_accuracy",
    "votes for the label": "vote/majority_ratio",
}
ENDS = 8  # steps at either end of a run, whose means are printed: an episode of the quickstart


def main() -> int:
    options, changes = parse(sys.argv[1:])
    places.require_writable(options.out, flag="--out")
    arms = [*options.algorithms, ORACLE] if options.algorithms else options.labels
    folders = [(arm, seed, options.out / f"{arm}-seed{seed}") for seed in options.seeds for arm in arms]
    for i, (arm, seed, folder) in enumerate(folders):
        print(f"== run {i + 1} of {len(folders)}: {folder}", flush=True)
        keys = [f"--config.algorithm={arm}" if arm in ALGORITHMS else f"--config.reward.label={arm}"]
        keys.append(f"--config.seed={seed}")
        code = subprocess.run(train(options.config, [*changes, *keys], folder)).returncode
        if code:
            return code
    chosen = [str(folder) for arm in arms for each, _, folder in folders if each == arm]
    groups = dict(zip(arms, by_seed(read_runs(chosen)), strict=True))
    table = (algorithms_table(groups) if options.algorithms else labels_table(groups)).markdown()
    said = findings(groups) + ([] if options.algorithms else courses(groups))
    write_text(options.out / "table.md", table)
    write_text(options.out / "curves.svg", picture(groups))
    print(table + "".join(f"{line}\n" for line in said), flush=True)
    report = ["ttrl_jax.report", *chosen, "--out", str(options.out / "report.html")]
    return subprocess.run([sys.executable, "-m", *report]).returncode


def out_folder(path: str) -> Path:
    """What --out names."""
    return places.local(path, flag="--out")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the --config.a.b=value arguments, which every run gets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = "as of ttrl_jax.train: FILE.py or FILE.py:MODEL"
    parser.add_argument("--config", required=True, type=os.path.expanduser, help=which)
    parser.add_argument("--out", required=True, type=out_folder, help="folder for the runs and what is made of them")
    parser.add_argument("--labels", default=",".join(LABELS), help="which, with commas between (%(default)s)")
    parser.add_argument("--algorithms", default="", help=f"instead of labels: of {', '.join(ALGORITHMS)}")
    parser.add_argument("--seeds", default="0,1,2", help="whole numbers with commas between (%(default)s)")
    options, changes = parser.parse_known_args(arguments)
    for change in changes:
        if not change.startswith("--config.") or "=" not in change:
            parser.error(f"unexpected argument {change!r}; a setting is changed by --config.a.b=value")
        if change.startswith(("--config.seed=", "--config.reward.label=", "--config.algorithm=")):
            parser.error(f"{change!r} is what the runs differ in; give --seeds, --labels or --algorithms")
    options.labels, options.seeds = options.labels.split(","), options.seeds.split(",")
    options.algorithms = options.algorithms.split(",") if options.algorithms else []
    strange = [algorithm for algorithm in options.algorithms if algorithm not in ALGORITHMS]
    if strange:
        parser.error(f"--algorithms knows {', '.join(ALGORITHMS)}, got {strange[0]!r}")
    unknown = [label for label in options.labels if label not in LABELS]
    if unknown:
        parser.error(f"--labels knows {', '.join(LABELS)}, got {unknown[0]!r}")
    wrong = [seed for seed in options.seeds if not seed.isdecimal()]
    if wrong:
        parser.error(f"--seeds must be whole numbers such as 0,1,2, got {wrong[0]!r}")
    for given in (options.labels, options.algorithms, options.seeds):
        if len(set(given)) < len(given):
            parser.error(f"each may be given once, got {','.join(given)}")
    return options, changes


def labels_table(groups: dict[str, Group]) -> Table:
    """avg@k, maj@k and, where it was measured, greedy of the first and the last evaluation: the mean of the seeds, the
    lowest and the highest."""
    rows, names = [], ("", "")
    for label, group in groups.items():
        for task in group.tasks:
            first, last = group.ends(task)
            names = metric_at(first, "avg"), metric_at(first, "maj"), *(["greedy"] if "greedy" in first else [])
            cells = [spread(numbers.get(name or "", [])) for numbers in (first, last) for name in names]
            rows.append([TITLES[label], called(task), *cells])
    head = ["labels", "questions", *(f"{name} {when}" for when in ("before", "after") for name in names)]
    return Table("labels", "", head, rows)


def findings(groups: dict[str, Group]) -> list[str]:
    """What the comparison is made for, in sentences: on the questions trained on, by the means of the seeds."""
    ends = {label: group.ends(OWN) for label, group in groups.items()}
    avg = {label: metric_at(last, "avg") for label, (_, last) in ends.items()}
    if not all(avg.values()):
        return ["Without true answers nothing can be compared."]
    reached = {label: fmean(last[avg[label]]) for label, (_, last) in ends.items()}
    first, last = next(iter(ends.values()))
    vote = metric_at(first, "maj")
    name, start, before = next(iter(avg.values())), fmean(first[next(iter(avg.values()))]), fmean(first[vote])
    said = [f"The start model: {name} {start:.3f}; its vote, {vote} {before:.3f}."]
    for label, value in reached.items():
        than_start = "above" if value > start else "not above"
        than_vote = "above" if value > before else "not above"
        way = f"Labels by {LABELS[label]}" if label in LABELS else TITLES[label]
        said.append(f"{way}: {name} {value:.3f}, {than_start} the start, {than_vote} its vote.")
    return said


def courses(groups: dict[str, Group]) -> list[str]:
    """How each kind of label went: means over the first and the last steps, and over the seeds."""
    said = []
    for label, group in groups.items():
        curves = {text: [value for _, value in mean_curve(group, name)] for text, name in CURVES.items()}
        ends = [f"{text} {fmean(y[:ENDS]):.3f} to {fmean(y[-ENDS:]):.3f}" for text, y in curves.items() if y]
        said.append(f"Labels by {LABELS[label]}, first to last {ENDS} steps: {', '.join(ends)}.")
    return said


def picture(groups: dict[str, Group]) -> str:
    """Two charts: correct samples in training by kind of label; how right the first kind's labels and rewards are."""
    correct = [
        Line(TITLES[label], i, mean_curve(group, "audit/ground_truth_reward"))
        for i, (label, group) in enumerate(groups.items())
    ]
    label, group = next(iter(groups.items()))
    told = [Line(text, i, mean_curve(group, name)) for i, (text, name) in enumerate(CURVES.items())]
    told_of = f"Labels by {LABELS[label]}" if label in LABELS else TITLES[label]
    charts = [("correct", "Correct samples in training", correct), ("labels", told_of, told)]
    drawn = [(name, title, [line for line in lines if line.points]) for name, title, lines in charts]
    return svg.picture([Chart(name, title, lines, "share", True) for name, title, lines in drawn if lines], most=POINTS)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
