"""What chips can do, as their makers publish it, and how much of their memory a process gets."""

import math
import os
from dataclasses import dataclass

import jax

from ttrl_jax.errors import InputError

GB = 1e9
# What JAX 0.10 to 0.12 read (jaxlib's xla_client.py) for the share of a GPU's memory that a process takes. The second
# is the older name; both together are an error.
FRACTION, OLDER = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
DEFAULT = 0.75
MOST = 0.95  # what CUDA's context, and the kernels of cuDNN and cuBLAS, take besides is about a gigabyte
APART = 1.02  # a share is asked for with a little more than is needed, as blocks of memory lie apart


@dataclass(frozen=True)
class Chip:
    flops: float  # a second, bfloat16, dense
    bandwidth: float  # bytes a second, of its memory
    memory: float  # bytes; of GPUs what CUDA gives


# By jax.Device.device_kind. https://cloud.google.com/tpu/docs/v5e, /v5p, /v6e; and NVIDIA's data sheets, whose numbers
# "with sparsity" are halved: https://www.nvidia.com/en-us/data-center/h100, /h200, /a100, /l40s, /l4. Bytes of GPUs:
# openxla/xla, xla/backends/gpu/target_config/specs, and where it has none what such cards report.
CHIPS = {
    "TPU v5 lite": Chip(197e12, 819e9, 16 * GB),
    "TPU v5": Chip(459e12, 2765e9, 95 * GB),
    "TPU v6 lite": Chip(918e12, 1638e9, 32 * GB),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3350e9, 84_942_979_072),  # SXM
    "NVIDIA H100 PCIe": Chip(756e12, 2000e9, 84_942_979_072),
    "NVIDIA H100 NVL": Chip(835e12, 3900e9, 99_900_000_000),
    "NVIDIA H200": Chip(989e12, 4800e9, 151_397_597_184),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2039e9, 85_100_068_864),
    "NVIDIA A100 80GB PCIe": Chip(312e12, 1935e9, 85_100_068_864),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 1555e9, 42_400_000_000),
    "NVIDIA L40S": Chip(362e12, 864e9, 47_700_000_000),
    "NVIDIA L4": Chip(121e12, 300e9, 23_600_000_000),
}


def chip_of(device: jax.Device) -> Chip | None:
    """What is published of a device, if it is known."""
    return CHIPS[device.device_kind] if device.device_kind in CHIPS else None


@dataclass(frozen=True)
class Memory:
    """Bytes of a device."""

    whole: float
    share: float  # what a process gets, as things are set

    @property
    def most(self) -> float:
        """What a process can be given."""
        return self.share if self.share == self.whole else max(self.share, MOST * self.whole)

    def fraction(self, needed: float) -> float | None:
        """What to set FRACTION to for so many bytes; None where it need not be set."""
        if needed <= self.share:
            return None
        return min(MOST, math.ceil(100 * APART * needed / self.whole) / 100)


def memory_of(device: jax.Device, *, there: bool) -> Memory:
    """What a device has: by its own account, or as published of one that is not there. Raises InputError where neither
    says it."""
    if device.platform == "cpu":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
        return Memory(whole, whole)
    chip, stats = chip_of(device), device.memory_stats() if there else None
    share = fraction() if device.platform == "gpu" else 1.0
    limit = float(stats["bytes_limit"]) if stats and "bytes_limit" in stats else None
    if chip and (limit is None or device.platform != "gpu"):
        limit = share * chip.memory
    if limit is None:
        raise InputError(f"how much memory a {device.device_kind} has is not known; plan for another with --topology")
    return Memory(limit / share, limit)


def fraction() -> float:
    """The share of a GPU's memory that a process takes here."""
    given = os.environ.get(FRACTION) or os.environ.get(OLDER)
    return float(given) if given else DEFAULT


def verdict(label: str, needed: float, memory: Memory) -> str:
    """Whether a device has the bytes that the largest program needs, and what to set so that it has. One sentence."""
    need, whole = f"{label} needs {needed / GB:.2f} GB", f"{memory.whole / GB:.2f}"
    if needed > memory.most:
        return f"it does not fit: {need}, and a device has {whole}"
    if memory.share == memory.whole:
        return f"it fits: {need}, and a device has {whole}"
    share = f"{memory.share / GB:.2f} of {whole}, its share of {memory.share / memory.whole:.0%}"
    more = memory.fraction(needed)
    if more is None:
        return f"it fits: {need}, and a process gets {share}"
    return f"it fits with {FRACTION}={more:.2f}: {need}, and a process gets {share}"
