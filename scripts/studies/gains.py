"""Tables 1, 2, 3 and 4, and figures 3 and 4: what models gain on questions, beside what the paper prints."""

import json
from collections.abc import Sequence
from statistics import fmean

from ttrl_jax.data.problems import load, truths
from ttrl_jax.report.chart import Bars
from ttrl_jax.report.data import Group
from ttrl_jax.run.metrics import write_jsonl
from ttrl_jax.tasks.sets import OWN

from .options import SMALL_TASKS, TABLE1, TABLE2, THINKING, Options, Results, Run, Study, runs_of
from .printed import cell
from .shown import NONE, Shown, Table, end_of

_HEAD = ("before", "after", "difference", "percent")
LEVELS = ("1", "2", "3", "4", "5")
SMALL_LEVELS = ("1", "2")


def grid(options: Options, models: Sequence[str], small: Sequence[str], tasks: Sequence[str], **changes) -> list[Run]:
    """Every model on every task, evaluated before and after."""
    return [
        run
        for model in options.models_or(models, small)
        for task in options.tasks_or(tasks, SMALL_TASKS)
        for run in runs_of(options, model, task, arm=(model, task), **({"eval__every": 0} | changes))
    ]


def change(before: Sequence[float], after: Sequence[float], *, scale: float = 100, form: str = ".1f") -> list[str]:
    """Cells: before, after, the difference, and this in percent of before, of the means over seeds."""
    if not before or not after:
        return [NONE] * 4
    first, last = scale * fmean(before), scale * fmean(after)
    percent = f"{100 * (last - first) / first:+.1f} %" if first else NONE
    return [f"{first:{form}}", f"{last:{form}}", f"{last - first:+{form}}", percent]


def table_of(name: str, results: Results, *, kind: str) -> Table:
    """Rows of models and tasks, and of each model's average, with what the paper prints."""
    rows = []
    for model in dict.fromkeys(model for model, _ in results):
        ends = []
        for task in [task for its, task in results if its == model]:
            group = results[model, task]
            before, after = (end_of(group, OWN, kind, which) for which in (0, -1))
            rows.append([model, task, *change(before, after), cell(name, model, task) or NONE])
            ends.append((before, after))
        if all(before and after for before, after in ends):
            means = [[fmean(fmean(pair[i]) for pair in ends)] for i in (0, 1)]
            rows.append([model, f"mean of {len(ends)}", *change(*means), cell(name, model, "average") or NONE])
    title = f"{'greedy' if kind == 'greedy' else 'avg@k'} in percent, on the questions trained on"
    return Table(name, title, ["model", "questions", *_HEAD, "printed"], rows)


def bars_of(name: str, results: Results, *, kind: str) -> Bars:
    models, tasks = (list(dict.fromkeys(arm[i] for arm in results)) for i in (0, 1))
    series = []
    for model in models:
        for which, when in ((0, "before"), (-1, "after")):
            found = [
                end_of(results[model, task], OWN, kind, which) if (model, task) in results else [] for task in tasks
            ]
            series.append((f"{model}: {when}", [fmean(values) if values else None for values in found]))
    return Bars(name, kind, tasks, series, "share")


def shown_of(name: str, kind: str = "avg"):
    def show(results: Results, options: Options) -> Shown:
        return Shown([table_of(name, results, kind=kind)], {name: [bars_of(name, results, kind=kind)]})

    return show


# ---------------------------------------------------------------------- levels


def level_file(options: Options) -> None:
    """For --small: the questions of a built-in set in two levels, by the size of their answers."""
    if not options.small:
        return
    [task] = options.tasks_or((), ("sums",))
    name = f"builtin:{task}.train"
    items = load(name, split="", question_column="prompt", truth_column="answer", level=None, limit=None)
    answers = truths(items)
    middle = sorted(float(answer) for answer in answers)[len(items) // 2]
    rows = [
        {"id": item.id, "prompt": item.question, "answer": answer, "level": 1 + (float(answer) >= middle)}
        for item, answer in zip(items, answers, strict=True)
    ]
    path = options.out / "levels.jsonl"
    if not path.is_file() or [json.loads(line) for line in path.read_text().splitlines()] != rows:
        write_jsonl(path, rows)


def level_runs(options: Options) -> list[Run]:
    [task] = options.tasks_or(("math500",), ("sums",))
    more = {"data__path": str(options.out / "levels.jsonl"), "eval__tasks": ()} if options.small else {}
    return [
        run
        for model in options.models_or(TABLE1[:1], ("noise",))
        for level in (SMALL_LEVELS if options.small else LEVELS)
        for run in runs_of(
            options,
            model,
            task,
            arm=(model, f"level {level}"),
            differing={"data.level": int(level)},
            eval__every=0,
            **more,
        )
    ]


def show_levels(results: Results, options: Options) -> Shown:
    rows, tokens = [], []
    for (model, level), group in results.items():
        pairs = {kind: [end_of(group, OWN, kind, which) for which in (0, -1)] for kind in ("avg", "response_length")}
        number = level.removeprefix("level ")
        rows.append([model, level, *change(*pairs["avg"]), cell("levels", model, number) or NONE])
        lengths = change(*pairs["response_length"], scale=1)
        tokens.append([model, level, *lengths, cell("levels_tokens", model, number) or NONE])
    head = ["model", "trained on", *_HEAD, "printed"]
    tables = [
        Table("levels", "avg@k in percent, each level trained on its own", head, rows),
        Table("levels_tokens", "tokens of a response", head, tokens),
    ]
    return Shown(tables, {"levels": [bars_of("levels", results, kind="avg")]})


# ---------------------------------------------------------------------- transfer


def transfer_runs(options: Options) -> list[Run]:
    tasks = options.tasks_or(("aime", "amc", "math500"), SMALL_TASKS)
    found = []
    for model in options.models_or(("Qwen/Qwen2.5-Math-7B",), ("ways",)):
        for task in tasks:
            others = [other for other in tasks if other != task]
            if options.small:
                sets = tuple(f"{other}=builtin:{other}.train" for other in others)
            else:
                paths = [runs_of(options, model, other, arm=(other,))[0].changes["data.path"] for other in others]
                sets = tuple(f"{other}={path}" for other, path in zip(others, paths, strict=True))
            found += runs_of(options, model, task, arm=(model, task), eval__every=0, eval__tasks=sets)
    return found


def show_transfer(results: Results, options: Options) -> Shown:
    tasks = list(dict.fromkeys(task for _, task in results))
    rows, pictures = [], {}
    for model in dict.fromkeys(model for model, _ in results):
        series: dict[str, list[float | None]] = {}
        for trained in [task for its, task in results if its == model]:
            group, row = results[model, trained], [model, trained]
            for task in tasks:
                before, after = (end_of(group, _set(group, trained, task), "avg", which) for which in (0, -1))
                row.append(f"{100 * fmean(before):.1f} -> {100 * fmean(after):.1f}" if before and after else NONE)
                if task == trained and before:
                    series.setdefault("start", [None] * len(tasks))[tasks.index(task)] = fmean(before)
                series.setdefault(f"trained on {trained}", []).append(fmean(after) if after else None)
            rows.append(row)
        file = f"figure4-{model.rpartition('/')[2]}"
        pictures[file] = [Bars(file, f"avg@k of {model}", tasks, list(series.items()), "share", "evaluated on")]
    return Shown(
        [Table("figure4", "avg@k in percent: trained on (rows), evaluated on", ["model", "trained on", *tasks], rows)],
        pictures,
    )


def _set(group: Group, trained: str, task: str) -> str:
    return OWN if task == trained else task


# ---------------------------------------------------------------------- the studies


def _table1(options: Options) -> list[Run]:
    return grid(options, TABLE1, ("ways", "noise"), ("aime", "amc", "math500", "gpqa"))


def _table2(options: Options) -> list[Run]:
    return grid(options, TABLE2, ("noisy",), ("aime", "amc", "math500"))


def _table4(options: Options) -> list[Run]:
    return grid(options, TABLE1[:2], ("ways",), ("aime", "amc", "math500"), eval__greedy=True)


def _thinking(options: Options) -> list[Run]:
    if options.small:  # none of whose models thinks
        return grid(options, (), ("ways",), ())
    found = []
    for model in options.models_or(THINKING, ()):
        more = {"prompt__thinking": True} if "Qwen3" in model else {}
        for task in options.tasks_or(("aime",), ()):
            # Of responses of 32k tokens the paper evaluates four.
            found += runs_of(options, model, task, arm=(model, task), eval__every=0, eval__samples=4, **more)
    return found


STUDIES = (
    Study("table1", "six models on four tasks: before, after, difference", _table1, shown_of("table1")),
    Study("table2", "six more models on three tasks", _table2, shown_of("table2")),
    Study("levels", "table 3: each level of MATH-500 trained on its own", level_runs, show_levels, level_file),
    Study("table4", "two models, greedy", _table4, shown_of("table4", "greedy")),
    Study("figure3", "models that think, on AIME 2024", _thinking, shown_of("figure3")),
    Study("figure4", "trained on one task, evaluated on the others", transfer_runs, show_transfer),
)
