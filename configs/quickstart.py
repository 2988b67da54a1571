"""TTRL in minutes on a laptop CPU: a small embedded model, 64 unlabelled word problems, no network.

    python -m ttrl_jax.train --config configs/quickstart.py

288 steps of 8 questions x 64 votes, 4 to 7 minutes on 2 cores. The model's errors are noise on purpose
(scripts/make_quickstart_model.py), so that a vote can undo them. The README has the scores.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.path = str(Path(__file__).parent / "quickstart_model")
    c.model.dtype = "float32"  # a small model on a CPU gains nothing from bfloat16
    c.data.path = "builtin:sums.train"
    c.eval.tasks = ("held_out=builtin:sums.held_out",)
    c.episodes = 36
    c.prompt.max_tokens = 32
    c.prompt.suffix = ""  # the model answers in a box unasked
    c.rollout.temperature = 1.0
    c.rollout.max_tokens = 13  # what the longest sum takes; a number that does not end has no vote
    c.rollout.rows = 1024
    # Learning which digits to write also moves what no vote is about yet, such as where a number ends: between two
    # visits of a question 63 can become 633, which then wins the vote and is taught. So it goes slowly: one update a
    # step from all eight questions, gradients clipped near their usual norm, a KL term, and Adam's second moment over
    # 100 updates, not 1,000, of which there are only 288.
    c.train.minibatch_prompts = 8
    c.train.micro_tokens = 6144
    c.train.learning_rate = 3e-5
    c.train.kl_coef = 0.1
    c.train.grad_clip = 0.3
    c.train.b2 = 0.99
    # A critic or a process model at the default rates would learn nothing in so few steps of so small a model. At 1e-4
    # a process model is sure of its labels within 20 steps, and from step 60 on wrong ones are taught.
    c.critic.learning_rate = 3e-4
    c.prime.learning_rate = 1e-5
    c.train.remat = False
    c.train.chunk_tokens = 4096
    c.eval.every = 0
    # As in training. At the default 0.6 and 0.95 the noise would be filtered away, before as after.
    c.eval.temperature = 1.0
    c.eval.top_p = 1.0
    return c
