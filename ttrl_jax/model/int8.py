"""Weights in 8 bits, for a base that is not trained: one scale for each output channel, max |w| / 127."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A weight [*inputs, *outputs] as codes times scales."""

    codes: Any  # int8 [*inputs, *outputs]
    scales: Any  # float32 [*outputs]


def quantised(weight: np.ndarray, *, inputs: int) -> Int8:
    """The nearest codes of a weight whose first `inputs` axes are summed over (host arrays)."""
    scales = np.abs(weight).max(tuple(range(inputs))) / np.float32(127)
    codes = np.rint(weight / np.where(scales > 0, scales, 1))
    return Int8(codes.astype(np.int8), scales.astype(np.float32))


def plain(weight: Any, dtype: jnp.dtype) -> jax.Array:
    """The weight that an Int8 stands for, in `dtype`; anything else as it is."""
    if not isinstance(weight, Int8):
        return weight
    return (weight.codes.astype(jnp.float32) * weight.scales).astype(dtype)


def is_int8(node: Any) -> bool:
    return isinstance(node, Int8)
