"""Hold a plan against the memory that a real run takes, on this machine's CPU.

    python scripts/check_plan_memory.py [--width 512] [--devices 1]

Plans a run of a random model (28 million weights at the default width) and then runs it: two training steps, of which
the second, when everything is compiled, is watched. Prints for sampling and for the update what was planned, what was
measured, and by how much they differ. Takes a minute and 2 GB of memory. Exit code 1 if one differs by more than 15 %.

What is planned: XLA's account of the largest program of each. What is measured, every millisecond: the process's
anonymous memory (RssAnon of /proc/self/status), of which the highest value counts, less what was there besides arrays
when the first step had ended. Linux only.
"""

import argparse
import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict
from safetensors.numpy import save_file

from configs import quickstart_sums
from ttrl_jax.inputs import read_inputs
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.model import weights
from ttrl_jax.model.config import read_config
from ttrl_jax.plan.__main__ import setting_of
from ttrl_jax.plan.programs import Compiler
from ttrl_jax.session import encode, open_session, sample, update

ALLOWED = 0.15
PHASES = {"sampling": ("sample",), "update": ("score", "update")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="a multiple of 64; the size goes with its square")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices (default: %(default)s)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        jax.config.update("jax_num_cpu_devices", given.devices)
        print(json.dumps(measure(settings(given.measure))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), given.width)
        command = [sys.executable, __file__, f"--measure={folder}", f"--devices={given.devices}"]
        # Large arrays are given back to the system when freed, so that what is left over is not counted as used.
        environment = {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "131072"}
        done = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True)
    over = False
    for phase, found in json.loads(done.stdout.splitlines()[-1]).items():
        apart = found["measured"] / found["planned"] - 1
        print(
            f"{phase}: planned {found['planned'] / 1e6:.0f} MB, measured {found['measured'] / 1e6:.0f} MB, {apart:+.1%}"
        )
        over |= abs(apart) > ALLOWED
    return int(over)


def make_model(folder: Path, width: int) -> None:
    """Write a random Llama of 6 layers, with the quickstart's tokenizer."""
    shutil.copytree(Path(quickstart_sums.__file__).parent / "quickstart_model", folder, dirs_exist_ok=True)
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 6, "head_dim": 32}
    fields |= {"num_attention_heads": width // 32, "num_key_value_heads": width // 64, "vocab_size": 8_192}
    fields |= {"max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(fields))
    rng = np.random.default_rng(0)
    shapes = weights.names(read_config(folder)).items()
    tensors = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes}
    save_file(tensors, folder / "model.safetensors")


def settings(model: Path) -> FrozenConfigDict:
    """Prompts so short beside responses that the update's rows are not packed, as in the plan."""
    c = quickstart_sums.get_config()
    c.model.path = str(model)
    c.eval.tasks = ()
    c.prompt.max_tokens = 24
    c.rollout.prompts, c.rollout.votes, c.rollout.rows, c.rollout.max_tokens = 4, 32, 128, 160
    c.train.minibatch_prompts, c.train.samples, c.train.micro_tokens = 4, 16, 768
    c.train.chunk_tokens = 512
    return FrozenConfigDict(c)


def measure(config: FrozenConfigDict) -> dict[str, dict[str, int]]:
    """Bytes planned and measured of each phase, of all devices."""
    inputs = read_inputs(config)
    config, devices = inputs.config, len(inputs.mesh.devices.flat)
    setting = setting_of(config, inputs.model, jax.devices(), (config.rollout.prompts,), inputs.stop_ids)
    compiler = Compiler(setting, quiet)
    compiler.all()
    session = open_session(inputs, say=quiet)
    drawn = {"votes": config.rollout.votes, "sampling": session.sampling}
    found = {}
    for step in range(2):
        key, batch = jax.random.key(step), inputs.problems.take(step)
        prompts = encode(session, batch)
        besides = settled_bytes() - live_bytes()
        quiet(f"before step {step}: {besides / 1e6:.0f} MB besides {live_bytes() / 1e6:.0f} MB of arrays")
        with Watch() as sampling:
            rollouts = sample(session, prompts, key, **drawn)
        chosen = np.tile(np.arange(config.train.samples), (len(batch), 1))
        rows = train_batch(prompts, rollouts, chosen)
        with Watch() as learning:
            session, _ = update(session, rows, {"advantages": rows.mask})
            jax.block_until_ready(session.state)
        found = {"sampling": sampling.highest - besides, "update": learning.highest - besides}
    planned = {phase: max(p.together for p in compiler.programs if p.phase in names) for phase, names in PHASES.items()}
    return {phase: {"planned": planned[phase] * devices, "measured": found[phase]} for phase in PHASES}


def quiet(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Watch:
    """The highest anonymous memory of the process while a block runs."""

    def __enter__(self) -> "Watch":
        self.highest, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.is_set():
            self.highest = max(self.highest, anonymous_bytes())
            time.sleep(0.001)

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()


def anonymous_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def settled_bytes() -> int:
    """The same, after what nobody needs any more has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return anonymous_bytes()


def live_bytes() -> int:
    """Bytes of all arrays on all devices."""
    return sum(shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards)


if __name__ == "__main__":
    sys.exit(main())
