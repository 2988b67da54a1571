"""NVIDIA GPUs that are not there, for XLA's ahead-of-time compiler."""

import contextlib
import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import jax
from jax._src import xla_bridge
from jax.experimental import topologies

from ttrl_jax.errors import InputError
from ttrl_jax.plan.chips import CHIPS

OF_HOST = 8  # GPUs that one host has
CUDNN = (9, 12)  # the oldest that jax-cuda13-plugin takes: what it can do decides what is compiled


@dataclass(frozen=True)
class Gpu:
    """What the compiler asks about one, besides its speed and memory.

    From openxla/xla, xla/backends/gpu/target_config/specs; of the L40S from NVIDIA's "Ada GPU Architecture" paper and
    the table of compute capabilities in the CUDA programming guide.
    """

    kind: str  # jax.Device.device_kind
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    units: int  # of float32 in each
    threads: int  # that each holds
    shared: int  # KiB of shared memory of each; a block may have 1 less
    cache: int  # MiB, L2
    clock: float  # GHz


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), cores=132, units=128, threads=2048, shared=228, cache=50, clock=1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), cores=132, units=128, threads=2048, shared=228, cache=50, clock=1.98),
    "a100-80": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), cores=108, units=64, threads=2048, shared=164, cache=40, clock=1.41
    ),
    "l40s": Gpu("NVIDIA L40S", (8, 9), cores=142, units=128, threads=1536, shared=100, cache=96, clock=2.52),
}


def target(gpu: Gpu) -> str:
    """A GPU as the compiler reads it: XLA's GpuTargetConfigProto as text."""
    chip, kib, most = CHIPS[gpu.kind], 1024, 2**16 - 1
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * kib,
        "shared_memory_per_block_optin": (gpu.shared - 1) * kib,
        "shared_memory_per_core": gpu.shared * kib,
        "threads_per_core_limit": gpu.threads,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": most,
        "block_dim_limit_z": most,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": gpu.cache * kib**2,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": int(chip.memory),
        "registers_per_core_limit": 64 * kib,
        "registers_per_block_limit": 64 * kib,
    }
    lines = [f"  {name}: {value}" for name, value in device.items()]
    major, minor = gpu.capability
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
    return "\n".join(
        ["gpu_device_info {", *lines, "}", 'platform_name: "CUDA"']
        + [f"dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}"]
        + ["runtime_version { major: 13 minor: 0 }", f'device_description_str: "{gpu.kind}"']
    )


def absent(kind: str, count: int = 1) -> list[jax.Device]:
    """`count` GPUs of a kind of GPUS that programs can be lowered and compiled for, and that run nothing.

    Raises InputError for a number that no hosts have, and where the compiler is not installed.
    """
    hosts, each = max(1, count // OF_HOST), min(count, OF_HOST)
    if hosts * each != count:
        raise InputError(f"--topology={kind}:{count} is no whole number of hosts with {OF_HOST} GPUs each")
    if not installed():
        raise InputError(
            f"--topology={kind} needs the compiler for NVIDIA GPUs, which is not installed; run, with Python 3.12 or "
            'newer: pip install -e ".[cuda13]"'
        )
    # The plugin would look for a driver, and for libraries that only what runs needs.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.config.update("jax_platforms", "cpu")  # of what is not compiled for them
    _name_their_platform()
    _name_their_capability()
    shape = f"1x{hosts}x{each}"  # slices, hosts, GPUs
    described = topologies.get_topology_desc("", platform="cuda", target_config=target(GPUS[kind]), topology=shape)
    return list(described.devices)


def installed() -> bool:
    """Whether the compiler is, and cuDNN, by whose version JAX decides what to ask of it."""
    with contextlib.suppress(ModuleNotFoundError):  # of the packages that they are in
        return None not in map(importlib.util.find_spec, ("jax_plugins.xla_cuda13", "nvidia.cudnn"))
    return False


def _name_their_platform() -> None:
    """Let JAX lower for CUDA in a process that has none. JAX knows GPUs as "gpu", and asks the devices that are there
    which maker's they are; where there are none it gives up (https://github.com/jax-ml/jax/issues/23971)."""
    ask = xla_bridge.canonicalize_platform

    def canonical(platform: str) -> str:
        return "cuda" if platform == "gpu" else ask(platform)

    xla_bridge.canonicalize_platform = canonical


def _name_their_capability() -> None:
    """Let Pallas lower for all of GPUS. It knows most by their names, and asks the default device about others, such
    as the L40S; where that is none of them it gives up."""
    if importlib.util.find_spec("jax._src.pallas.triton.gpu_info") is None:  # in jax 0.10, which needs no names
        return
    gpu_info = importlib.import_module("jax._src.pallas.triton.gpu_info")
    ask, known = gpu_info.get_gpu_info, {gpu.kind: gpu.capability for gpu in GPUS.values()}

    def info() -> Any:
        if (kind := gpu_info.get_device_kind()) not in known:
            return ask()
        major, minor = known[kind]
        return gpu_info.GpuInfo(gpu_version=None, arch_name=f"{major}.{minor}", compute_capability=10 * major + minor)

    gpu_info.get_gpu_info = info
