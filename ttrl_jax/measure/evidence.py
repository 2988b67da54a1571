"""What is known of each vote beside its answer."""

import numpy as np

from ttrl_jax.learn.batch import train_batch
from ttrl_jax.records import Prompts, Rollouts
from ttrl_jax.reward.judge import Evidence, Judge
from ttrl_jax.session import Session, entropies
from ttrl_jax.tasks.voting import in_format


def evidence_of(session: Session, prompts: Prompts, rollouts: Rollouts, judge: Judge) -> Evidence:
    """The evidence that a judge asks for; entropies take a forward pass over all votes."""
    means = None
    if judge.asks_entropies:
        every = np.tile(np.arange(rollouts.lengths.shape[1]), (len(rollouts.lengths), 1))
        found = np.asarray(entropies(session, train_batch(prompts, rollouts, every)))
        means = found.sum(1).reshape(rollouts.lengths.shape) / np.maximum(rollouts.lengths, 1)
    formed = in_format(rollouts.texts, session.task.in_format)
    return Evidence(rollouts.lengths, rollouts.mean_logps, formed, means)
