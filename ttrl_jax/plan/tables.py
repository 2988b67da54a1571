"""A plan as text."""

from typing import Any

from ttrl_jax.plan.chips import GB, Memory

PARTS = ("weights", "optimizer", "cache", "activations", "together")


def table(plan: dict[str, Any], memory: Memory) -> str:
    """The settings of a plan, the bytes of a chip in each of its programs, and the seconds of its phases."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    names = "".join(f"{part:>13}" for part in (*PARTS, "spare"))
    wide = max([20, *(len(program["label"]) for program in plan["programs"])])
    lines = [
        "",
        f"mesh {mesh}, rollout.rows={plan['rollout.rows']}, train.micro_tokens={plan['train.micro_tokens']}",
        f"{plan['slots']} slots for {plan['responses']} responses; passes of {plan['pass_tokens']} tokens, "
        f"{plan['real_tokens']} of them real, rows of up to {plan['row_tokens']}",
        "",
        f"  {'GB of a chip':{wide}}{names}{'FLOP':>12}{'bytes':>12}",
    ]
    for program in plan["programs"]:
        sizes = [program[part] for part in PARTS]
        cells = "".join(f"{size / GB:13.2f}" for size in (*sizes, memory.share - program["together"]))
        flops, moved = program["work"]["flops"], program["work"]["moved"]
        lines.append(f"  {program['label']:{wide}}{cells}{flops:12.3g}{moved:12.3g}")
    lines += ["", *_counted(plan)]
    if plan["seconds"] is not None:
        shown = ", ".join(f"{phase} {seconds:.3g} s" for phase, seconds in plan["seconds"].items())
        lines.append(f"at the published speed of the chips, every response to its limit: {shown}")
    run = plan["run"]
    if run is not None and run["hours"] is not None:
        lines.append(
            f"the run's {run['steps']} steps and {run['evaluations']} evaluations: {run['hours']:.3g} hours, "
            f"{run['chip_hours']:.3g} chip-hours"
        )
    return "\n".join(lines)


def _counted(plan: dict[str, Any]) -> list[str]:
    """How many programs a run has, where it is decided before it begins, and what compiling took."""
    took = f"compiling these took {plan['compile_s']:.0f} s here, one after the other"
    if plan["programs_of_run"] is None:
        return [took]
    parts = ", ".join(f"{number} of {name}" for name, number in plan["programs_of_run"].items())
    total = sum(plan["programs_of_run"].values())
    return [f"a whole run has {total} programs that take long to compile, {parts}; it compiles them in parallel", took]
