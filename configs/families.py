"""Models whose errors are known, for scripts/referee.py: a family is the part after the colon.

    python -m ttrl_jax.train --config configs/families.py:belief

48 steps of 8 questions x 16 votes, under a minute on 2 free cores. The families differ in the model alone
(scripts/make_families.py):

    noise       errors scatter, and the vote is right
    belief      it is sure that sums have no carry: the vote is wrong where one has
    mixed       noise where a sum has no carry, belief where it has one
    half_known  sure where a sum has no carry, near ties where it has one

docs/science.md says what they are for.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart


def get_config(family: str = "noise") -> ConfigDict:
    c = quickstart.get_config()
    c.model.path = str(Path(__file__).parent / "families" / family)
    c.data.path = "builtin:sums.train"
    c.data.limit = 64  # of the questions held out, which are 256
    c.eval.tasks = ("held_out=builtin:sums.held_out",)
    c.episodes = 6
    c.rollout.votes = 16
    c.rollout.max_tokens = 14  # what the longest sum takes, and one more
    c.train.samples = 16
    return c
