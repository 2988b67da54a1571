"""TTRL in minutes on a laptop CPU: a small embedded model, 64 unlabelled word problems, no network.

    python -m ttrl_jax.train --config configs/quickstart.py

80 steps of 8 questions x 64 votes, 2 to 4 minutes on 2 cores. The model has four ways to write out a sum, and the one
that it likes best forgets the carry, which each of these sums has. Asked greedily, it goes that way. Sampled, three
answers in five go another way, and the vote is mostly right: it knows more than the model's best answer, and the model
learns that. The ways were made on purpose (scripts/make_quickstart_model.py). The README has the scores.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.path = str(Path(__file__).parent / "quickstart_ways_model")
    c.model.dtype = "float32"  # a small model on a CPU gains nothing from bfloat16
    c.data.path = "builtin:carries.train"
    c.eval.tasks = ("held_out=builtin:carries.held_out",)
    c.episodes = 10
    c.prompt.max_tokens = 32
    c.prompt.suffix = ""  # the model answers in a box unasked
    c.rollout.temperature = 1.0
    c.rollout.max_tokens = 30  # what the longest way takes, and one more
    c.rollout.rows = 1024
    # One update a step from all eight questions, gradients clipped near their usual norm, and Adam's second moment over
    # 100 updates, not 1,000, of which there are only 80. The way is the choice of one token, which needs neither small
    # steps nor a strong pull to the start.
    c.train.minibatch_prompts = 8
    c.train.micro_tokens = 6144
    c.train.learning_rate = 1e-4
    c.train.kl_coef = 0.02
    c.train.grad_clip = 0.3
    c.train.b2 = 0.99
    # A critic or a process model at the default rates would learn nothing in so few steps of so small a model.
    c.critic.learning_rate = 3e-4
    c.prime.learning_rate = 1e-5
    c.train.remat = "none"
    c.train.chunk_tokens = 4096
    c.eval.every = 0
    # As in training. At the default 0.6 and 0.95 the ways that are chosen less often would be filtered away.
    c.eval.temperature = 1.0
    c.eval.top_p = 1.0
    c.eval.greedy = True  # what changes most
    return c
