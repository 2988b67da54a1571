"""The update: for each minibatch the gradient, a micro-batch at a time, and one optimizer step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ttrl_jax.learn import microbatch
from ttrl_jax.learn import optimizer as optim
from ttrl_jax.learn.logprobs import response_logprobs
from ttrl_jax.learn.loss import token_sums
from ttrl_jax.learn.microbatch import MicroBatch
from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.records import TrainBatch, TrainState
from ttrl_jax.run.compiled import Compiled

Sums = dict[str, Any]


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
    unroll: bool  # see decoder.forward


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is computed at once, see microbatch.micro_batches: memory, not maths. Other sizes change only rounding."""

    minibatch_rows: int  # rows of one optimizer step
    micro_tokens: int  # tokens of a shard, padding included, in one forward and backward pass
    chunk_tokens: int  # response tokens of a shard with logits at a time
    longest: int  # the most tokens of a row: prompt and response
    shards: int  # parts that rows are split into, over the batch axes of the mesh
    pack: bool  # whether a prompt is computed once for all of its rows in a pass, and padding not at all


class Update:
    """Compiled learning programs for one model.

    reference: parameters of the frozen start, or None when there is no KL term. state_shardings: the layout that the
    state keeps. announce: called with a line before and after each compile. compiler_options: as in jax.jit.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: optax.GradientTransformation,
        *,
        loss: LossSettings,
        score: ScoreSettings,
        sizes: Sizes,
        reference: decoder.Params | None,
        state_shardings: TrainState,
        announce: Callable[[str], None],
        compiler_options: dict[str, Any] | None = None,
    ):
        self.sizes, self.reference = sizes, reference
        # Without these two terms, a row without an advantage has no gradient.
        self._all_rows = loss.kl_coef != 0 or loss.entropy_coef != 0
        logprobs = functools.partial(
            response_logprobs, config=config, entropy_gradient=loss.entropy_coef != 0, **vars(score)
        )
        self._zeros = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params), out_shardings=state_shardings.params)
        compiled = functools.partial(Compiled, announce=announce, compiler_options=compiler_options)
        self._score = compiled("score", functools.partial(_score, logprobs=logprobs))
        self._gradient = compiled(
            "gradient",
            functools.partial(_gradient, logprobs=logprobs, loss=loss),
            donate_argnames=("total",),
            out_shardings=(state_shardings.params, None),
        )
        self._step = compiled(
            "optimizer step",
            functools.partial(_step, optimizer=optimizer),
            donate_argnames=("state",),
            out_shardings=(state_shardings, None),
        )

    def __call__(self, state: TrainState, batch: TrainBatch, rate: float) -> tuple[TrainState, dict[str, float]]:
        """Train on P * G rows (host arrays) at learning rate `rate`; `state` is used up.

        Old log-probs come from the training graph, before the first optimizer step: those of a single minibatch are its
        own. Returns the new state and the means over the optimizer steps of what is worth logging; what is only known
        of rows that were computed is left out where none were. Raises FloatingPointError when no optimizer step had a
        finite gradient; single ones without are skipped and counted, as in the reference.
        """
        size = self.sizes.minibatch_rows
        minibatches = [_rows(batch, slice(i, i + size)) for i in range(0, len(batch.mask), size)]
        work = [self.micro_batches(minibatch) for minibatch in minibatches]
        old = self._scores(state.params if len(minibatches) > 1 else None, work)
        reference = self._scores(self.reference, work)
        found, ends = [], []
        for i, (minibatch, micros) in enumerate(zip(minibatches, work, strict=True)):
            total, sums = self._zeros(state.params), []
            for each in zip(micros, old[i], reference[i], strict=True):
                total, of_micro = self._gradient(state.params, total, *each)
                sums.append(of_micro)
            last = np.int32(i == len(work) - 1)
            state, end = self._step(state, total, minibatch.mask.sum(), np.float32(rate), last)
            found.append(sums)
            ends.append(end)
        found, ends = jax.device_get((found, ends))
        if all(end["skipped"] for end in ends):
            raise FloatingPointError("update/grad_norm is not finite in any optimizer step of this training step")
        steps = [
            _of_step(sums, tokens=minibatch.mask.sum(), computed=sum(m.mask.sum() for m in micros)) | end
            for sums, minibatch, micros, end in zip(found, minibatches, work, ends, strict=True)
        ]
        metrics = _means([step for step in steps if not step["skipped"]])
        metrics["skipped"] = float(sum(end["skipped"] for end in ends))
        metrics["rows_skipped"] = float((~self._needed(batch)).sum())
        return state, metrics

    def _scores(self, params: decoder.Params | None, work: list[list[MicroBatch]]) -> list[list[jax.Array | None]]:
        """Log-probs of each micro-batch, or None without params. One after the other: a CPU would start them all, and
        the gradients of those that are done, and hold the memory of all of them."""
        return [[jax.block_until_ready(self._score(params, m)) if params else None for m in micros] for micros in work]

    def _needed(self, batch: TrainBatch) -> np.ndarray:
        """bool [R], false where a row has no gradient."""
        return np.ones(len(batch.mask), bool) if self._all_rows else batch.advantages != 0

    def micro_batches(self, minibatch: TrainBatch) -> list[MicroBatch]:
        """The micro-batches of the rows that are needed."""
        sizes = self.sizes
        return microbatch.micro_batches(
            _rows(minibatch, self._needed(minibatch)),
            shards=sizes.shards,
            tokens=sizes.micro_tokens,
            chunk=sizes.chunk_tokens,
            full=sizes.minibatch_rows,
            longest=sizes.longest,
            pack=sizes.pack,
        )

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return sum(program.compile_seconds for program in (self._score, self._gradient, self._step))


def _rows(batch: TrainBatch, index: Any) -> TrainBatch:
    return jax.tree.map(lambda x: x[index], batch)


def _score(params: decoder.Params, micro: MicroBatch, *, logprobs: Callable) -> jax.Array:
    """Log-probs of the response tokens of a micro-batch, float32 [X, Z, C]."""
    return logprobs(params, micro=micro)[0]


def _gradient(
    params: decoder.Params,
    total: decoder.Params,
    micro: MicroBatch,
    old: jax.Array | None,
    reference: jax.Array | None,
    *,
    logprobs: Callable,
    loss: LossSettings,
) -> tuple[decoder.Params, Sums]:
    """`total` and the gradient of the summed loss of a micro-batch; and the sums of what is worth logging."""

    def summed_loss(params: decoder.Params) -> tuple[jax.Array, Sums]:
        logps, entropies = logprobs(params, micro=micro)
        before = jax.lax.stop_gradient(logps) if old is None else old
        value, sums = token_sums(
            logps, entropies, before, reference, micro.advantages, micro.mask, **dataclasses.asdict(loss)
        )
        return value, sums | {"logp_gap": (jnp.abs(before - micro.sampler_logps) * micro.mask).sum()}

    grads, sums = jax.grad(summed_loss, has_aux=True)(params)
    return jax.tree.map(jnp.add, total, grads), sums


def _step(
    state: TrainState,
    total: decoder.Params,
    tokens: jax.Array,
    rate: jax.Array,
    last: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Sums]:
    """The state after one optimizer step with the gradient total / tokens, or as it was where that is not finite. The
    last one of a batch counts as a training step (last: int32 [], 1 or 0)."""
    grads = jax.tree.map(lambda g: g / tokens, total)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)

    def step(_: None) -> tuple[Any, Any]:
        updates, new = optimizer.update(grads, state.optimizer, state.params)
        return optim.apply(state.params, updates, rate), new

    params, opt_state = jax.lax.cond(finite, step, lambda _: (state.params, state.optimizer), None)
    return TrainState(state.step + last, params, opt_state), {"grad_norm": norm, "skipped": 1.0 - finite}


IN_LOSS = ("loss", "policy_loss", "clip_fraction", "dual_clip_fraction")  # 0 in a row without an advantage


def _of_step(micros: list[Sums], *, tokens: float, computed: float) -> dict[str, float]:
    """Token means of a minibatch from the sums of its micro-batches; `computed` of its `tokens` are in those."""
    if not micros:
        return dict.fromkeys(IN_LOSS, 0.0)
    sums = {name: [float(each[name]) for each in micros] for name in micros[0]}
    largest = {"ratio_max": max(sums.pop("ratio_max"))}
    return largest | {name: sum(x) / float(tokens if name in IN_LOSS else computed) for name, x in sums.items()}


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
    """Over the optimizer steps that know them."""
    values = {
        name: [step[name] for step in steps if name in step] for name in {k: None for step in steps for k in step}
    }
    return {name: float(max(x) if name == "ratio_max" else np.mean(x)) for name, x in values.items()}
