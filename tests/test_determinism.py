"""What a GPU promises of two runs of one seed, and that it keeps it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ttrl_jax.inputs import repeats

ROOT = Path(__file__).parent.parent
FLAG = "--xla_gpu_exclude_nondeterministic_ops=true"


def test_what_is_promised():
    assert repeats({}).startswith("up to rounding") and FLAG in repeats({})
    assert repeats({"XLA_FLAGS": f"--xla_dump_to=x {FLAG}"}).startswith("bit for bit")
    assert repeats({"XLA_FLAGS": FLAG.replace("true", "false")}).startswith("up to rounding")


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU is here")
def test_two_runs_on_a_gpu_are_the_same(tmp_path: Path):
    """Bit for bit, two processes, with programs that the first one keeps."""
    found = []
    for name in ("one", "other"):
        command = [
            sys.executable,
            "-m",
            "ttrl_jax.train",
            "--config",
            "configs/quickstart_sums.py",
            "--config.episodes=1",
        ]
        environment = os.environ | {"XLA_FLAGS": FLAG, "XDG_CACHE_HOME": str(tmp_path)}
        subprocess.run([*command, "--workdir", str(tmp_path / name)], cwd=ROOT, env=environment, check=True)
        found.append(json.loads((tmp_path / name / "summary.json").read_text())["params_sha256"])
    assert found[0] == found[1]
