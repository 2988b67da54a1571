"""A plan as text."""

from typing import Any

from ttrl_jax.plan.arithmetic import GB

PARTS = ("weights", "optimizer", "cache", "activations", "together")


def table(plan: dict[str, Any], memory: float) -> str:
    """The settings of a plan, the bytes of a chip in each of its programs, and the seconds of its phases."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    lines = [
        "",
        f"mesh {mesh}, rollout.rows={plan['rollout.rows']}, train.micro_tokens={plan['train.micro_tokens']}",
        f"{plan['slots']} slots for {plan['responses']} responses; passes of {plan['pass_rows']} rows of "
        f"{plan['row_tokens']} tokens, {plan['real_rows']} of the rows real",
        "",
        f"  {'GB of a chip':20}" + "".join(f"{part:>13}" for part in (*PARTS, "spare")) + f"{'FLOP':>12}{'bytes':>12}",
    ]
    for program in plan["programs"]:
        sizes = [program[part] for part in PARTS]
        cells = "".join(f"{size / GB:13.2f}" for size in (*sizes, memory - program["together"]))
        flops, moved = program["work"]["flops"], program["work"]["moved"]
        lines.append(f"  {program['label']:20}{cells}{flops:12.3g}{moved:12.3g}")
    if plan["seconds"] is not None:
        shown = ", ".join(f"{phase} {seconds:.3g} s" for phase, seconds in plan["seconds"].items())
        lines += ["", f"at the published speed of the chips, every response to its limit: {shown}"]
    run = plan["run"]
    if run is not None and run["hours"] is not None:
        lines.append(
            f"the run's {run['steps']} steps and {run['evaluations']} evaluations: {run['hours']:.3g} hours, "
            f"{run['chip_hours']:.3g} chip-hours"
        )
    return "\n".join(lines)
