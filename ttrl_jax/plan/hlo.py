"""Read the text of a program that XLA has compiled: what its loops move, copy and start."""

import re
from collections import Counter
from typing import Any

import numpy as np

COLLECTIVE = re.compile(r"= (\S.*?) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(")
COPY = re.compile(r"= (\S.*?) (copy|copy-start)\(")
CALL = re.compile(r'custom_call_target="([^"]*)"')
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}


def computations(hlo: str) -> dict[str, str]:
    """The text of each computation by its name."""
    return {name: text for text in re.split(r"\n(?=\S)", hlo) for name in re.findall(r"^%?([\w.\-]+) \(", text)}


def in_loops(hlo: str) -> list[str]:
    """The computations that a program's loops run, at any depth."""
    bodies = computations(hlo)
    inside, todo = set(), re.findall(r"(?:body|condition)=%?([\w.\-]+)", hlo)
    while todo:
        name = todo.pop()
        if name in bodies and name not in inside:
            inside.add(name)
            todo += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", bodies[name])
    return [bodies[name] for name in sorted(inside)]


def loop_collectives(hlo: str) -> list[dict[str, Any]]:
    """The collectives inside a program's loops, at any depth, largest first: kind, shape, bytes, how many."""
    return _listed(hlo, COLLECTIVE)


def loop_copies(hlo: str) -> list[dict[str, Any]]:
    """The copies inside a program's loops, from one memory or layout to another, as for `loop_collectives`."""
    return _listed(hlo, COPY)


def loop_scatters(hlo: str) -> int:
    """How many scatters there are inside a program's loops."""
    return sum(len(re.findall(r" scatter\(", text)) for text in in_loops(hlo))


def loop_kernels(hlo: str) -> int:
    """Fusions and custom calls that a turn of the largest loop starts, less those of loops inside it."""
    bodies = computations(hlo)

    def kernels(name: str) -> int:
        text = bodies[name] if name in bodies else ""
        called = re.findall(r" call\(.*?to_apply=%?([\w.\-]+)", text)  # XLA's parts of a body that are started at once
        return len(re.findall(r" (?:fusion|custom-call)\(", text)) + sum(map(kernels, called))

    return max(map(kernels, re.findall(r"body=%?([\w.\-]+)", hlo)), default=0)


def custom_calls(hlo: str) -> dict[str, int]:
    """Calls of what XLA did not generate itself, by their targets: cuDNN, cuBLAS, Pallas."""
    return dict(Counter(CALL.findall(hlo)))


def _listed(hlo: str, pattern: re.Pattern) -> list[dict[str, Any]]:
    found = Counter((kind, shape) for text in in_loops(hlo) for shape, kind in pattern.findall(text))
    rows = [
        {"kind": kind, "shape": re.sub(r"\{.*?\}", "", shape), "bytes": _bytes(shape), "count": times}
        for (kind, shape), times in found.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def _bytes(shape: str) -> int:
    """Bytes of the largest array in a type as XLA writes it."""
    sizes = [
        BYTES[dtype] * int(np.prod([int(n) for n in dims.split(",") if n]))
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    ]
    return max(sizes)
