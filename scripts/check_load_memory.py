"""Measure the host memory that loading a model takes beyond the model itself.

    python scripts/check_load_memory.py [--width 1536]

Makes a random checkpoint (2 GB of float32 in 4 safetensors files; 0.2 GB at --width 512) in a temporary folder and
loads it in a process with 1 CPU device and in one with 8, twice in each, as the first load also compiles. Takes half a
minute and 3 GB of memory. Exit code 1 if a second load needs more than the largest tensor plus 20 % of the checkpoint.

What is measured: every 2 ms, the process's anonymous memory (RssAnon of /proc/self/status, which leaves out files that
are mapped into memory) minus the bytes of the parameters that are on the mesh so far (on CPU that is host memory too);
of this the highest value while loading minus the one before. What is on its way there counts as beyond.
Linux only.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from ttrl_jax.model import decoder, weights
from ttrl_jax.model.config import ModelConfig, read_config
from ttrl_jax.model.sharding import make_mesh

SHARDS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1536, help="a multiple of 256; the size goes with its square")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load is not None:
        print(json.dumps(measure(arguments.load, arguments.devices)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sizes = make_checkpoint(Path(folder), arguments.width)
        bound = max(sizes) + 0.2 * sum(sizes)
        total, largest, allowed = (f"{size / 1e6:.0f} MB" for size in (sum(sizes), max(sizes), bound))
        print(f"checkpoint {total}, largest tensor {largest}: {allowed} allowed")
        over = False
        for devices in (1, 8):
            command = [sys.executable, __file__, f"--load={folder}", f"--devices={devices}"]
            # Large arrays are given back to the system when freed, so that what is left over is not counted as used.
            environment = {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "131072"}
            done = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout)
            first, second = (f"{extra / 1e6:.0f} MB" for extra in found["extra"])
            print(f"{devices} devices: {found['arrays'] / 1e6:.0f} MB of arrays; beyond them {first}, again {second}")
            over |= found["extra"][1] > bound
    return int(over)


def make_checkpoint(folder: Path, width: int) -> list[int]:
    """Write a random model of the Llama shape; returns the bytes of each tensor."""
    heads = width // 64
    fields = {
        "model_type": "llama",
        "vocab_size": 24 * width,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 13,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    shapes = weights.names(read_config(folder))
    rng = np.random.default_rng(0)
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        names = list(shapes)[shard::SHARDS]
        save_file({name: rng.random(shapes[name], np.float32) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return [4 * math.prod(shape) for shape in shapes.values()]


def measure(folder: Path, devices: int) -> dict[str, object]:
    """Load the model twice; bytes of its arrays, and for each time the highest memory beyond them."""
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh(data=1, fsdp=-1, tensor=1 if devices == 1 else 2)
    config = read_config(folder)
    extra = []
    with jax.set_mesh(mesh):
        for _ in range(2):
            arrays, beyond = watched_load(folder, config, mesh)
            extra.append(beyond)
    return {"arrays": arrays, "extra": extra}


def watched_load(folder: Path, config: ModelConfig, mesh: jax.sharding.Mesh) -> tuple[int, int]:
    shapes = {leaf.shape for leaf in jax.tree.leaves(decoder.shapes(config))}
    before, placed, highest, done = anonymous_bytes(), 0, 0, threading.Event()

    def watch() -> None:
        nonlocal placed, highest
        while not done.is_set():
            # What is on the mesh only grows. For a moment, a parameter given away for its update is not seen.
            earlier, used = placed, anonymous_bytes()
            placed = max(placed, live_bytes(shapes))
            if placed == earlier:  # else one more parameter came between the two readings
                highest = max(highest, used - placed)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    params = jax.block_until_ready(weights.load(folder, config, mesh))
    done.set()
    watcher.join()
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params)), highest - before


def anonymous_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def live_bytes(shapes: set[tuple[int, ...]]) -> int:
    """Bytes of the live float32 arrays of these shapes, on all devices."""
    live = [array for array in jax.live_arrays() if array.shape in shapes]
    return sum(4 * math.prod(a.sharding.shard_shape(a.shape)) * a.sharding.num_devices for a in live)


if __name__ == "__main__":
    sys.exit(main())
