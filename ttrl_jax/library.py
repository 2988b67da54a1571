"""All that your own program needs, under one name: `from ttrl_jax import library as ttrl`. docs/library.md shows it.

Importing this defines no flags, and neither sets JAX's mesh nor touches a device.
"""

from ttrl_jax.algorithms import credit
from ttrl_jax.inputs import Inputs, read_inputs
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.measure.evaluation import measure, task_keys
from ttrl_jax.measure.evidence import evidence_of
from ttrl_jax.reward.audit import audit, truth_classes
from ttrl_jax.reward.equivalence import classes_by
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History
from ttrl_jax.reward.judge import Draw, Judge
from ttrl_jax.reward.score import select
from ttrl_jax.reward.vote import vote
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.session import (
    Session,
    close,
    encode,
    entropies,
    open_session,
    render,
    respond,
    restore,
    sample,
    save,
    score,
    step_key,
    update,
)
from ttrl_jax.tasks.hearing import stop_of
from ttrl_jax.tasks.task import Task, by_strategies
from ttrl_jax.tasks.voting import cast_votes, judge_of, majority_voting_reward

__all__ = [
    "Answer",
    "Checkpoints",
    "Draw",
    "History",
    "Inputs",
    "Judge",
    "Sampling",
    "Session",
    "Task",
    "audit",
    "by_strategies",
    "cast_votes",
    "classes_by",
    "close",
    "credit",
    "encode",
    "entropies",
    "evidence_of",
    "judge_of",
    "majority_voting_reward",
    "measure",
    "open_session",
    "read_inputs",
    "render",
    "respond",
    "restore",
    "sample",
    "save",
    "score",
    "select",
    "step_key",
    "stop_of",
    "task_keys",
    "train_batch",
    "truth_classes",
    "update",
    "vote",
]
