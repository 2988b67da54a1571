"""What every test runs under: 8 CPU devices."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

# Both must be set before the first use of a device. Tests run on the CPU, so that they see the same devices
# on every machine; JAX_PLATFORMS in the environment overrides that.
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# The tests, and the commands that they start, compile the same programs again and again: they are kept on disk as long
# as the tests run, and none in the user's folder. Of several processes of pytest the first makes the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    PROGRAMS = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_configure(config: pytest.Config) -> None:
    """Quick tests, and the commands that they start, compile without XLA's optimisations, which is most of their time;
    tests that are slow, and those that are asked for with -m, with them."""
    if config.option.markexpr == "not slow":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def no_mesh_left() -> Iterator[None]:
    """A command sets JAX's mesh for its whole process, which here is that of all tests."""
    yield
    jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


@pytest.fixture
def fresh_flags() -> Iterator[Callable[[], None]]:
    """Flags are global: forget afterwards what was parsed, and whenever this is called."""

    def forget() -> None:
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        if "config" in flags.FLAGS:
            flags.FLAGS["config"].value = None
            flags.FLAGS["config"].present = 0
        sys.modules.pop("config_config", None)  # the last --config file, over which the next one would be loaded
        for name in {"workdir", "checkpoint", "out", "images"} & set(flags.FLAGS):
            flags.FLAGS[name].value = ""
        for name, value in {"mode": "vote", "model": "", "follow": False, "step": None}.items():
            if name in flags.FLAGS:
                flags.FLAGS[name].value = value

    yield forget
    forget()


@pytest.fixture
def ttrl_data() -> Path:
    """The folder of the paper's data files, which TTRL_DATA names; without it the test is skipped."""
    if "TTRL_DATA" not in os.environ:
        pytest.skip("TTRL_DATA does not name the folder of the paper's data files")
    folder = Path(os.environ["TTRL_DATA"])
    assert folder.is_dir(), f"TTRL_DATA names {folder}, which is not a folder"
    return folder
