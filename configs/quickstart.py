"""TTRL in minutes on a laptop CPU: a small embedded model, 64 unlabelled word problems, no network.

python -m ttrl_jax.train --config configs/quickstart.py
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.path = str(Path(__file__).parent / "quickstart_model")
    c.model.dtype = "float32"
    c.data.path = "builtin:sums.train"
    c.eval.held_out_path = "builtin:sums.held_out"
    c.episodes = 10
    c.prompt.max_tokens = 32
    c.rollout.max_tokens = 16
    c.rollout.rows = 1024
    c.train.minibatch_prompts = 2
    c.train.micro_rows = 64
    c.train.learning_rate = 4e-5
    c.train.kl_coef = 0.0
    c.train.remat = False
    c.train.chunk_tokens = 4096
    c.eval.every = 0
    c.eval.temperature = 1.0
    c.eval.top_p = 1.0
    return c
