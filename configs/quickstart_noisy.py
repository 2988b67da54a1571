"""The quickstart with a noisier start: most labels are wrong at first, most rewards are right, and both get better.

    python -m ttrl_jax.train --config configs/quickstart_noisy.py

A quarter of the votes (16) at a higher temperature (1.3): one response in ten is right, and the winner has two of 16
votes. A wrong label still gives the right 0 to all the responses that are wrong in other ways, so that rewards are far
more often right than labels, and that is enough to learn. docs/science.md has the scores.
"""

from ml_collections import ConfigDict

from configs import quickstart_sums


def get_config() -> ConfigDict:
    c = quickstart_sums.get_config()
    c.rollout.votes = 16
    c.rollout.temperature = 1.3
    c.train.samples = 16
    c.eval.temperature = 1.3  # as in training
    return c
