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
# as the tests run, and none in the user's folder.
PROGRAMS = tempfile.TemporaryDirectory()
for _name, _value in (("jax_compilation_cache_dir", PROGRAMS.name), ("jax_persistent_cache_min_compile_time_secs", 0)):
    os.environ[_name.upper()] = str(_value)
    jax.config.update(_name, _value)


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
        flags.FLAGS["config"].value = None
        flags.FLAGS["config"].present = 0
        sys.modules.pop("config_config", None)  # the last --config file, over which the next one would be loaded
        for name in {"workdir", "checkpoint", "out"} & set(flags.FLAGS):
            flags.FLAGS[name].value = ""

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
