"""Plans for devices that are not there, made in processes of their own: what tests read of compiled programs."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
MATH_1_5B = {  # Qwen2.5-Math-1.5B but for its layers
    "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rope_theta": 1e4,
}  # fmt: skip
VOCAB, LAYERS = 151_936, 2
FFN = MATH_1_5B["intermediate_size"]
# In each layer those of attention with its biases, of ffn and of norms; the table, which is tied; the last norm.
WEIGHTS = (
    LAYERS * (2 * 1536 * 1536 + 2 * 1536 * 256 + 1536 + 2 * 256 + 3 * 1536 * 8960 + 2 * 1536) + VOCAB * 1536 + 1536
)
SLOTS, TOKENS = 512, 3_072  # at the settings of AIME
LAYER_KEYS = SLOTS * TOKENS * 256 * 2  # bytes of a layer's keys while sampling, and of its values, in bfloat16


def model_folder(folder: Path, *, layers: int = LAYERS, **fields) -> Path:
    """A Qwen2.5 of so many layers; the tokenizer is another model's, and so are the weights, which no plan
    reads. fields: of its config.json."""
    shutil.copytree(ROOT / "configs" / "quickstart_model", folder, dirs_exist_ok=True)
    common = {"model_type": "qwen2", "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(common | fields | {"num_hidden_layers": layers}))
    return folder


@cache
def planned(config: str, topology: str, *settings: str) -> dict:
    """The plan of a config, made in a process whose own devices are CPUs, with all of XLA's optimisations. It must
    fit."""
    command = [sys.executable, "-m", "ttrl_jax.plan", "--json", f"--config=configs/{config}", f"--topology={topology}"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    done = subprocess.run([*command, *settings], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def programs(told: dict) -> dict[str, dict]:
    """Those of the first plan by their labels."""
    return {program["label"]: program for program in told["plans"][0]["programs"]}


def sizes(listed: list[dict]) -> set[int]:
    """The sizes of the axes of what `ttrl_jax.plan.hlo` lists: arrays that loops exchange or copy."""
    shapes = " ".join(one["shape"] for one in listed)
    return {int(size) for axes in re.findall(r"\[[\d,]*\]", shapes) for size in re.findall(r"\d+", axes)}
