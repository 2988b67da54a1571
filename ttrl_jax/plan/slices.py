"""The devices that are planned for: those of this machine, a TPU slice, or GPUs, which need not be there."""

import importlib.util
import math
import os

import jax
from jax.experimental import topologies

from ttrl_jax.errors import InputError
from ttrl_jax.plan.gpus import GPUS, absent
from ttrl_jax.run import distributed

TPUS = ("v5e", "v5p", "v6e")


def devices(topology: str) -> list[jax.Device]:
    """The devices that --topology names, or those of this machine. Raises InputError if it names no known devices."""
    if not topology:
        return distributed.devices()
    kind, colon, shape = topology.partition(":")
    sizes = [int(size) for size in shape.split("x") if size.isdigit()]
    written = "x".join(map(str, sizes)) == shape and all(sizes)
    if kind in TPUS and sizes and written:
        return _slice(topology, sizes)
    if kind in GPUS and (not colon or len(sizes) == 1) and written:
        return absent(kind, *sizes)
    raise InputError(
        f"--topology={topology} is nothing that can be planned for; expected one of {', '.join(TPUS)} with its shape, "
        f"such as v5e:4x4 or v5p:2x2x2, or one of {', '.join(GPUS)}, or several such as h100:8"
    )


def _slice(topology: str, sizes: list[int]) -> list[jax.Device]:
    """The devices of a TPU slice."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            '--topology needs the TPU compiler, libtpu, which is not installed; run: pip install -e ".[tpu]"'
        )
    # There is no metadata server to ask for a TPU, and nothing runs on one that two processes could quarrel about.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # of what is not compiled for the slice
    alone = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sizes) == 1 else {}  # else hosts have more
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **alone).devices)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"--topology={topology} is no slice of this kind ({str(error).splitlines()[0]}); see "
            f"https://cloud.google.com/tpu/docs/{topology.partition(':')[0]} for those that there are"
        ) from error
