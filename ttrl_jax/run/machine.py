"""What a run is computed on: devices and versions."""

import platform
from datetime import UTC, datetime
from importlib import metadata

import jax

_PACKAGES = ("ttrl_jax", "jax", "flax", "optax", "transformers")


def facts() -> dict[str, object]:
    """JSON-ready: `started` (UTC, ISO 8601), `devices` (such as "8 x NVIDIA H100"), `processes`, `python`, and the
    version of each of the main packages, null where it is used without being installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "python": platform.python_version(),
    } | versions
