"""Compare the models that ttrl_jax.merge and mergekit make of the same recipes.

    python scripts/check_merge.py --mergekit ENV/bin/mergekit-yaml

Needs the command of a mergekit installed in an environment of its own (`pip install mergekit`; 0.1.5 is the release
this was last run with). Makes two random models of the quickstart's shape, but of 6 layers, in a temporary folder,
merges them by each recipe in each type, and compares the weights. Takes three minutes. Exit code 1 if a weight differs
by more than 1e-5 in float32, or if more than one in a thousand differ in bfloat16, where sums in another order round
some the other way.
"""

import argparse
import copy
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from ttrl_jax.model import weights
from ttrl_jax.model.config import read_config

MODEL = Path(__file__).parent.parent / "configs" / "quickstart_model"
LAYERS = 6
BY_FILTER = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]
# (t, ranges of layers, none for whole models); a list without a filter shows what a tensor of no layer gets.
RECIPES = {
    "by filter": (BY_FILTER, [[0, 6]]),
    "one list": ([0.2, 0.9], [[0, 6]]),
    "three slices, one of a single layer": (BY_FILTER, [[0, 2], [2, 5], [5, 6]]),
    "whole models, by filter": (BY_FILTER, None),
    "whole models, one number": (0.3, None),
}
LARGEST, SHARE = 1e-5, 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, required=True, help="the command mergekit-yaml")
    mergekit = parser.parse_args().mergekit
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        names = [str(make_model(where / name, seed=seed)) for seed, name in enumerate(["base", "other"])]
        for title, (t, slices) in RECIPES.items():
            for dtype in ("float32", "bfloat16"):
                path = where / "merge.yml"
                path.write_text(yaml.safe_dump(recipe(names, t=t, slices=slices, dtype=dtype)))
                ours = merged([sys.executable, "-m", "ttrl_jax.merge", str(path), "--out"], where / "ours")
                theirs = merged([str(mergekit), str(path)], where / "theirs")
                largest, share = differences(ours, theirs)
                failed |= largest > LARGEST if dtype == "float32" else share > SHARE
                print(f"{title}, {dtype}: largest difference {largest:.2e}, in {share:.1e} of the weights", flush=True)
    return int(failed)


def make_model(folder: Path, *, seed: int) -> Path:
    """A random float32 model, at about 60 degrees from those of other seeds; layer 0's mlp is colinear with theirs."""
    shutil.copytree(MODEL, folder)
    fields = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(fields))
    common, own = np.random.default_rng(100), np.random.default_rng(seed)
    tensors = {}
    for name, shape in weights.names(read_config(folder)).items():
        mine = 0.01 if name.startswith("model.layers.0.mlp") else 1.0
        tensors[name] = np.float32(common.normal(size=shape) + mine * own.normal(size=shape)) / 10
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def recipe(names: list[str], *, t: list | float, slices: list[list[int]] | None, dtype: str) -> dict:
    whole = {"models": [{"model": name} for name in names]}
    parts = [{"sources": [{"model": name, "layer_range": span} for name in names]} for span in slices or []]
    return (whole if slices is None else {"slices": parts}) | {
        "merge_method": "slerp",
        "base_model": names[0],
        "parameters": {"t": copy.deepcopy(t)},  # else YAML writes an alias
        "dtype": dtype,
    }


def merged(command: list[str], out: Path) -> dict[str, np.ndarray]:
    """Run the command with `out` as its last argument; the float32 tensors that it has written there."""
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([*command, str(out)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    files = sorted(out.glob("*.safetensors"))
    return {name: np.float32(x) for file in files for name, x in load_file(file).items()}


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[float, float]:
    """(the largest, the share of the weights that differ at all)."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"not the same tensors: {sorted(ours.keys() ^ theirs.keys())}")
    apart = np.concatenate([np.abs(x - theirs[name]).ravel() for name, x in ours.items()])
    return float(apart.max()), float((apart > 0).mean())


if __name__ == "__main__":
    sys.exit(main())
