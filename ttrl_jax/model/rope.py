"""Rotary position embedding (arXiv 2104.09864): how far it turns per position, as transformers 5.23 computes it."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# What each kind takes besides rope_theta: fields that must be there, fields that may.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ("factor",)),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
}
_IDLE = {"partial_rotary_factor": (None, 1), "finetuned": (None, True, False)}  # with which a field changes nothing
_DISAGREES = "so that the keys of a cache and those of a whole row disagree"
_REFUSED = {
    "dynamic": f"is not supported: its rotation depends on the length of the row, {_DISAGREES}",
    "longrope": f"is not supported: its rotation changes where a row outgrows the original context, {_DISAGREES}",
}


@dataclass(frozen=True)
class Rope:
    """A rotation. A pair of numbers of a head turns by its frequency at each position.

    All kinds but `default` stretch a context to `factor` times its length. `linear` slows all pairs down by the factor;
    `llama3` and `yarn` only those that turn less than `slow` times over the original context, not those that turn more
    than `fast` times, and by a mixture between (llama3 mixes by the number of turns, yarn by the index of the pair).
    """

    kind: str = "default"  # default | linear | llama3 (arXiv 2407.21783) | yarn (arXiv 2309.00071)
    theta: float = 10_000.0
    factor: float = 1.0
    original: int = 0  # positions of the original context
    slow: float = 1.0  # turns
    fast: float = 1.0  # turns
    truncate: bool = True  # yarn: the bounds of the mixture are whole pairs
    scale: float = 1.0  # yarn: on cos and sin


@functools.lru_cache
def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position of each pair (i, i + H / 2) of a head, float32 [H / 2]. Read only."""
    plain = 1.0 / np.float32(rope.theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    stretched = plain / np.float32(rope.factor)
    if rope.kind in ("default", "linear"):
        kept = np.zeros_like(plain)
    elif rope.kind == "llama3":
        turns = rope.original * plain / np.float32(2 * math.pi)
        kept = np.clip((turns - rope.slow) / (rope.fast - rope.slow), 0, 1)
    else:
        low, high = _mixed_pairs(rope, head_dim)
        kept = 1 - np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    mixed = np.float32(stretched * (1 - kept) + plain * kept)
    mixed.setflags(write=False)
    return mixed


def _mixed_pairs(rope: Rope, head_dim: int) -> tuple[float, float]:
    """The first and the last pair, as (fractional) indices, between which yarn mixes."""

    def pair(turns: float) -> float:  # the one that turns so many times over the original context
        return head_dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.fast), pair(rope.slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high


def parse_rope(fields: dict[str, Any], problems: list[str]) -> Rope:
    """The rotation that a `config.json` asks for, in either spelling: `rope_parameters` as transformers 5 writes it,
    `rope_theta` and `rope_scaling` as earlier ones did. What cannot be used is added to `problems`, by name."""
    written = [name for name in ("rope_parameters", "rope_scaling") if fields.get(name)]
    if len(written) == 2:  # for both releases: they must mean the same
        one, other = (parse_rope({**fields, name: None}, problems) for name in written[::-1])
        if one != other:
            problems.append("rope_scaling and rope_parameters are both set, and differ; keep rope_parameters")
        return one
    name = written[0] if written else "rope_parameters"
    given = fields.get(name) or {}
    if not isinstance(given, dict):
        problems.append(f"{name}={given!r} should be an object")
        return Rope()
    given = {"rope_theta": fields.get("rope_theta", 10_000.0), **given}
    if type(given["rope_theta"]) not in (int, float) or given["rope_theta"] <= 1:
        problems.append(f"rope_theta={given['rope_theta']!r} should be a number above 1")
        return Rope()
    given = {key: value for key, value in given.items() if key not in _IDLE or value not in _IDLE[key]}
    alias = given.pop("type", "default")
    kind, theta = str(given.pop("rope_type", alias)), float(given.pop("rope_theta"))
    if kind not in _FIELDS:
        why = _REFUSED[kind] if kind in _REFUSED else f"is not known, expected one of {sorted(_FIELDS)}"
        problems.append(f"{name} of type {kind!r} {why}")
        return Rope()
    faults = _faults(kind, given)
    problems += [f"{name}: {fault}" for fault in faults]
    if faults or kind == "default":
        return Rope(theta=theta)
    # An absent original context is the one that the config gives: 0 if that is missing, which is a problem of its own.
    original = given.get("original_max_position_embeddings") or fields.get("max_position_embeddings") or 0
    return _rope(kind, theta, original, given)


def _faults(kind: str, given: dict[str, Any]) -> list[str]:
    """What is wrong with the fields of a rotation, one phrase each."""
    required, optional = _FIELDS[kind]
    faults = [f"{field} is missing" for field in required if given.get(field) is None]
    faults += [f"{field} does not belong to {kind!r}" for field in given if field not in (*required, *optional)]
    for field in (*required, *optional):
        if field == "truncate":
            if type(given.get(field, True)) is not bool:
                faults.append(f"truncate={given[field]!r} should be true or false")
        elif given.get(field) is not None and (type(given[field]) not in (int, float) or given[field] <= 0):
            faults.append(f"{field}={given[field]!r} should be a number above 0")
    if kind == "default" and given.get("factor") not in (None, 1):
        faults.append("factor does not belong to 'default', but for 1")
    if not faults and kind == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
        faults.append("high_freq_factor should be above low_freq_factor")
    return faults


def _rope(kind: str, theta: float, original: int, given: dict[str, Any]) -> Rope:
    factor = float(given["factor"])
    if kind == "linear":
        return Rope(kind, theta, factor)
    if kind == "llama3":
        slow, fast = float(given["low_freq_factor"]), float(given["high_freq_factor"])
        return Rope(kind, theta, factor, original, slow, fast)

    def longer(weight: float) -> float:  # by how much a longer context sharpens attention, equation 22 of the paper
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, mscale_all_dim = given.get("mscale"), given.get("mscale_all_dim")
    scale = longer(mscale) / longer(mscale_all_dim) if mscale and mscale_all_dim else longer(1.0)
    return Rope(
        kind,
        theta,
        factor,
        original,
        slow=float(given.get("beta_slow") or 1),
        fast=float(given.get("beta_fast") or 32),
        truncate=given.get("truncate", True),
        scale=float(given.get("attention_factor") or scale),
    )
