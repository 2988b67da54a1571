"""The update: all optimizer steps of one rollout batch in one jitted program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ttrl_jax.learn import optimizer as optim
from ttrl_jax.learn.logprobs import response_logprobs
from ttrl_jax.learn.loss import token_sums
from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import constrain
from ttrl_jax.records import TrainBatch, TrainState
from ttrl_jax.run.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Scalars of the loss, see loss.token_sums."""

    clip_low: float
    clip_high: float
    dual_clip: float
    kl_coef: float
    entropy_coef: float


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """How log-probs are computed, see logprobs.response_logprobs."""

    temperature: float
    dtype: Any
    remat: bool
    chunk: int  # tokens with logits at a time


class Update:
    """Compiled learning programs for one model.

    minibatch_rows: rows of one optimizer step. micro_rows: rows of one forward and backward pass, a divisor of it
    (memory, not maths: the gradient is the same up to rounding). reference: parameters of the frozen start, or None
    when there is no KL term. state_shardings: the layout that the state keeps. announce: called with a line before and
    after each compile.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: optax.GradientTransformation,
        *,
        loss: LossSettings,
        score: ScoreSettings,
        minibatch_rows: int,
        micro_rows: int,
        reference: decoder.Params | None,
        state_shardings: TrainState,
        announce: Callable[[str], None],
    ):
        self.minibatch_rows, self.micro_rows, self.reference = minibatch_rows, micro_rows, reference
        logprobs = functools.partial(_logprobs, config=config, score=score)
        self._score = Compiled("score", functools.partial(_score_rows, logprobs=logprobs), announce=announce)
        self._update = Compiled(
            "update",
            functools.partial(_update, logprobs=logprobs, optimizer=optimizer, loss=loss),
            announce=announce,
            donate_argnames=("state",),
            out_shardings=(state_shardings, None),
        )

    def __call__(self, state: TrainState, batch: TrainBatch, rate: float) -> tuple[TrainState, dict[str, float]]:
        """Train on P * G rows (host arrays) at learning rate `rate`; `state` is used up.

        Old log-probs come from the training graph, before the first optimizer step: those of a single minibatch are its
        own. Returns the new state and the means over the optimizer steps of what is worth logging. Raises
        FloatingPointError when no optimizer step had a finite gradient; single ones without are skipped and counted, as
        in the reference.
        """
        shaped = jax.tree.map(lambda x: x.reshape(-1, self.micros, self.micro_rows, *x.shape[1:]), batch)
        old = self._score(state.params, shaped) if len(shaped.mask) > 1 else None
        reference = None if self.reference is None else self._score(self.reference, shaped)
        state, metrics = self._update(state, shaped, old, reference, np.float32(rate))
        host = {name: np.asarray(values) for name, values in jax.device_get(metrics).items()}
        if host["skipped"].all():
            raise FloatingPointError("update/grad_norm is not finite in any optimizer step of this training step")
        means = {name: float(values[host["skipped"] == 0].mean()) for name, values in host.items()}
        means["ratio_max"] = float(host["ratio_max"][host["skipped"] == 0].max())
        means["skipped"] = float(host["skipped"].sum())
        return state, means

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self._score.compile_seconds + self._update.compile_seconds

    @property
    def micros(self) -> int:
        return self.minibatch_rows // self.micro_rows


def _pin(micro: TrainBatch) -> TrainBatch:
    """Rows over the batch axes of the mesh."""
    return dataclasses.replace(
        micro,
        ids=constrain(micro.ids, "rows", None),
        responses=constrain(micro.responses, "rows", None),
        mask=constrain(micro.mask, "rows", None),
    )


def _logprobs(
    params: decoder.Params, micro: TrainBatch, *, config: ModelConfig, score: ScoreSettings
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies [rows, T'] of one micro-batch."""
    micro = _pin(micro)
    return response_logprobs(
        params,
        config,
        micro.ids,
        micro.prompt_lengths,
        micro.responses,
        temperature=score.temperature,
        dtype=score.dtype,
        remat=score.remat,
        chunk=score.chunk,
    )


def _score_rows(params: decoder.Params, batch: TrainBatch, *, logprobs: Callable) -> jax.Array:
    """Log-probs of every row, a micro-batch at a time: float32 [minibatches, micro-batches, rows, T']."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    return jax.lax.map(lambda micro: logprobs(params, micro)[0], flat).reshape(batch.mask.shape)


def _update(
    state: TrainState,
    batch: TrainBatch,
    old: jax.Array | None,
    reference: jax.Array | None,
    rate: jax.Array,
    *,
    logprobs: Callable,
    optimizer: optax.GradientTransformation,
    loss: LossSettings,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step for each minibatch. Metrics come with a leading minibatch axis."""

    def summed_loss(params, micro, old, reference):
        logps, entropies = logprobs(params, micro)
        old = jax.lax.stop_gradient(logps) if old is None else old
        total, sums = token_sums(
            logps, entropies, old, reference, micro.advantages, micro.mask, **dataclasses.asdict(loss)
        )
        return total, sums | {"logp_gap": (jnp.abs(old - micro.sampler_logps) * micro.mask).sum()}

    def one_minibatch(carry, minibatch):
        params, opt_state = carry
        tokens = minibatch[0].mask.sum()

        def one_micro(total, micro):
            grads, sums = jax.grad(summed_loss, has_aux=True)(params, *micro)
            return jax.tree.map(jnp.add, total, grads), sums

        grads, sums = jax.lax.scan(one_micro, jax.tree.map(jnp.zeros_like, params), minibatch)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        metrics = {name: x.max() if name == "ratio_max" else x.sum() / tokens for name, x in sums.items()}
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        carry = _step_if(finite, optimizer, grads, opt_state, params, rate)
        return carry, metrics | {"grad_norm": norm, "skipped": 1.0 - finite}

    xs = (batch, old, reference)
    (params, opt_state), metrics = jax.lax.scan(one_minibatch, (state.params, state.optimizer), xs)
    return TrainState(state.step + 1, params, opt_state), metrics


def _step_if(
    finite: jax.Array,
    optimizer: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    rate: jax.Array,
) -> tuple[Any, Any]:
    """Parameters and optimizer state after one optimizer step, or as they were where the gradient is not finite."""

    def step(_: None) -> tuple[Any, Any]:
        updates, new_state = optimizer.update(grads, opt_state, params)
        return optim.apply(params, updates, rate), new_state

    return jax.lax.cond(finite, step, lambda _: (params, opt_state), None)
