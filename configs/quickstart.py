"""TTRL in two minutes on a laptop CPU: a small embedded model, 64 unlabelled word problems, no network.

    python -m ttrl_jax.train --config configs/quickstart.py

160 steps of 8 questions x 64 votes. The model's errors are noise on purpose (scripts/make_quickstart_model.py), so that
a vote can undo them: avg@16 goes from 0.21 to 0.95, above the start's maj@16 of 0.75, on held-out questions from 0.22 to
0.92. 2 CPU cores take about 110 s.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.path = str(Path(__file__).parent / "quickstart_model")
    c.model.dtype = "float32"  # a small model on a CPU gains nothing from bfloat16
    c.data.path = "builtin:sums.train"
    c.eval.held_out_path = "builtin:sums.held_out"
    c.episodes = 20
    c.prompt.max_tokens = 32
    c.rollout.max_tokens = 16
    c.rollout.rows = 1024
    # At a rate that gets somewhere in two minutes, learning which digits to write also moves what no vote is about, such
    # as where a number ends: 63 becomes 633, wins the vote, and is taught. The KL term holds that in place. Besides, two
    # updates a step from four questions each, gradients clipped near their usual norm, and Adam's second moment over 100
    # updates, not 1,000, of which there are only 320.
    c.train.kl_coef = 0.05
    c.train.minibatch_prompts = 4
    c.train.micro_rows = 128
    c.train.learning_rate = 4e-5
    c.train.grad_clip = 0.3
    c.train.b2 = 0.99
    c.train.remat = False
    c.train.chunk_tokens = 4096
    c.eval.every = 0
    # As in training. At the default 0.6 and 0.95 the noise would be filtered away, before as after.
    c.eval.temperature = 1.0
    c.eval.top_p = 1.0
    return c
