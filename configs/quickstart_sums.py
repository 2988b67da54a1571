"""The quickstart with errors that are noise: a model that knows each sum, and says it right one time in five.

    python -m ttrl_jax.train --config configs/quickstart_sums.py

288 steps of 8 questions x 64 votes, 4 to 7 minutes on 2 cores. Half of the digits that its model saw in training were
random (scripts/make_quickstart_model.py), so its mistakes scatter, and a vote can undo them. Asked greedily it is right
from the start, so that there is nothing to gain for who can do that; it shows what happens to samples. docs/science.md
has the scores.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.model.path = str(Path(__file__).parent / "quickstart_model")
    c.data.path = "builtin:sums.train"
    c.eval.tasks = ("held_out=builtin:sums.held_out",)
    c.eval.greedy = False
    c.episodes = 36
    c.rollout.max_tokens = 13  # what the longest sum takes; a number that does not end has no vote
    # Learning which digits to write also moves what no vote is about yet, such as where a number ends: between two
    # visits of a question 63 can become 633, which then wins the vote and is taught. So it goes slowly, with a KL term.
    # At 1e-4 a process model is sure of its labels within 20 steps, and from step 60 on wrong ones are taught.
    c.train.learning_rate = 3e-5
    c.train.kl_coef = 0.1
    return c
