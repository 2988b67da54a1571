"""Results as text: a table, and one line."""

import re
from collections.abc import Sequence

_LEVEL = re.compile(r"level(\d+)_")


def table(columns: dict[str, dict[str, float]], *, samples: int, extra_k: Sequence[int]) -> str:
    """The results side by side as plain text; columns: title -> what `evaluate` returned for `samples` of each. Of a
    set in which some questions have no truth, `truths` is the number of those that accuracies are means over."""
    names = [f"{name}@{samples}" for name in ("avg", "maj", "pass", "best_of", "scorer_best_of")]
    names += ["greedy", "stopped_maj", "drawn_share"]
    kinds = ("maj", "pass", "best_of", "scorer_best_of")
    names += [f"{name}@{j}" for j in sorted({*extra_k} - {samples}) for name in kinds]
    for reading in ("strict", "flexible", "last_number"):
        names += [f"{reading}_{name}" for name in ("valid_rate", f"avg@{samples}")]
        names += [f"{reading}_{name}@{j}" for j in sorted({*extra_k, samples}) for name in ("maj", "pass")]
    levels = sorted({int(found[1]) for result in columns.values() for x in result if (found := _LEVEL.match(x))})
    names += [f"level{n}_{x}" for n in levels for x in (f"avg@{samples}", f"maj@{samples}", "response_length")]
    names += ["truths", "majority_ratio", "format_rate", "no_answer_rate", "truncation_rate", "response_length"]
    names = [name for name in names if any(name in result for result in columns.values())]
    width, widths = max(len(name) for name in names), [max(15, len(title)) for title in columns]
    lines = [" " * width + "".join(f"  {title:>{w}}" for title, w in zip(columns, widths, strict=True))]
    for name in names:
        form = ".0f" if name == "truths" else ".3f"
        shown = [f"{result[name]:{form}}" if name in result else "-" for result in columns.values()]
        lines.append(f"{name:<{width}}" + "".join(f"  {x:>{w}}" for x, w in zip(shown, widths, strict=True)))
    return "\n".join(lines)


def headline(result: dict[str, float], *, samples: int) -> str:
    """The main numbers of a result on one line."""
    names = [f"avg@{samples}", f"maj@{samples}", "greedy", "majority_ratio", "no_answer_rate"]
    return ", ".join(f"{name} {result[name]:.3f}" for name in names if name in result)
