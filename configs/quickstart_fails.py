"""A run that learns nothing, to see what tells: the noisier quickstart at a temperature at which hardly a vote is won.

    python -m ttrl_jax.train --config configs/quickstart_fails.py

Votes scatter so far that the winner has one or two of 16, most labels are drawn from a tie, and each is another one at
the next visit. docs/science.md has the numbers, and says which of them need no truth.
"""

from ml_collections import ConfigDict

from configs import quickstart_noisy


def get_config() -> ConfigDict:
    c = quickstart_noisy.get_config()
    c.rollout.temperature = 2.0
    c.eval.temperature = 2.0  # as in training
    return c
