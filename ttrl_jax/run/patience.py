"""When a run stops early: no model of late is better than an earlier one, by the votes alone, without any truth."""

from collections.abc import Mapping
from typing import Any

from ttrl_jax.run.choice import candidates, ranked
from ttrl_jax.run.visits import Visits


def weary(visits: Visits, *, episode: int, patience: int, since: int = 0) -> int | None:
    """The step of the model that `choice.ranked` takes, if it has waited `patience` episodes for a better one; else
    None. All processes of a run have the same votes, and so agree.

    A model is judged by the votes of the episode that it begins, so that the newest one is not judged yet: a run stops
    `patience` + 1 episodes after the model that is taken, at the earliest. episode: its steps. patience: 0 never stops.
    since: a step from which the waiting counts; that of the last time at which the run was made longer.
    """
    if not patience:
        return None
    found = list(candidates(visits, episode=episode))
    if not (order := ranked(found)):
        return None
    waited = (found[-1].step - max(order[0].step, since)) // episode
    return order[0].step if waited >= patience else None


def sentence(stopped: Mapping[str, Any], *, steps: int) -> str:
    """What `stopped` of a summary means. steps: those that the run has."""
    model = f"that after {stopped['best']} steps" if stopped["best"] else "the start"
    episodes = f"{stopped['patience']} episode{'s' * (stopped['patience'] > 1)}"
    return (
        f"stopped early: after {steps} steps no model has been better than {model}, by its votes, for {episodes} "
        "(stop.patience); with stop.patience=0, a larger one or more episodes the same command goes on"
    )
