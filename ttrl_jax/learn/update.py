"""The update: for each minibatch the gradient, a micro-batch at a time, and one optimizer step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ttrl_jax.learn import microbatch
from ttrl_jax.learn import optimizer as optim
from ttrl_jax.learn.logprobs import response_logprobs
from ttrl_jax.learn.loss import Loss, Sums
from ttrl_jax.learn.microbatch import MicroBatch
from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.records import Model, TrainBatch
from ttrl_jax.run.compiled import Compiled

Numbers = Mapping[str, np.ndarray | jax.Array]  # by name, of each response token: float32 [R, T']


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

    reference: parameters of the frozen start, or None for a loss that does not ask for them. shardings: the layout that
    the model keeps. announce: called with a line before and after each compile. compiler_options: as in jax.jit.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: optax.GradientTransformation,
        *,
        loss: Loss,
        score: ScoreSettings,
        sizes: Sizes,
        reference: decoder.Params | None,
        shardings: Model,
        announce: Callable[[str], None],
        compiler_options: dict[str, Any] | None = None,
    ):
        self.loss, self.sizes, self.reference = loss, sizes, reference
        logprobs = functools.partial(
            response_logprobs, config=config, entropy_gradient=loss.entropy_gradient, **vars(score)
        )
        self._zeros = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params), out_shardings=shardings.params)
        compiled = functools.partial(Compiled, announce=announce, compiler_options=compiler_options)
        self._score = compiled("score", functools.partial(_score, logprobs=logprobs))
        self._gradient = compiled(
            "gradient",
            functools.partial(_gradient, logprobs=logprobs, loss=loss),
            donate_argnames=("total",),
            out_shardings=(shardings.params, None),
        )
        self._step = compiled(
            "optimizer step",
            functools.partial(_step, optimizer=optimizer),
            donate_argnames=("model",),
            out_shardings=(shardings, None),
        )

    def __call__(
        self, model: Model, batch: TrainBatch, numbers: Numbers, rate: float
    ) -> tuple[Model, dict[str, float]]:
        """Train on P * G rows (host arrays) at learning rate `rate`; `model` is used up.

        numbers: "advantages", and what else the loss asks for, in the order of the rows. Old log-probs come from the
        training graph, before the first optimizer step: those of a single minibatch are its own, so that nothing is
        computed for them. Returns the new model and the means over the optimizer steps of what is worth logging; what
        is only known of rows that were computed is left out where none were. Raises FloatingPointError when no
        optimizer step had a finite gradient; single ones without are skipped and counted, as in the reference.
        """
        needed = self._needed(batch, numbers["advantages"])
        work = [self.micro_batches(batch, rows[needed[rows]]) for rows in self._minibatches(batch)]
        tokens = [batch.mask[rows].sum() for rows in self._minibatches(batch)]
        numbers = {**numbers, "sampler_logps": batch.sampler_logps}
        if len(work) > 1:
            numbers["old"], _ = self._scores(model.params, batch, work)
        if self.reference is not None:
            numbers["reference"], _ = self._scores(self.reference, batch, work)
        found, ends = [], []
        for micros, count in zip(work, tokens, strict=True):
            total, sums = self._zeros(model.params), []
            for micro in micros:
                own = {name: micro.take(values) for name, values in numbers.items()}
                total, of_micro = self._gradient(model.params, total, micro, own)
                sums.append(of_micro)
            model, end = self._step(model, total, count, np.float32(rate))
            found.append(sums)
            ends.append(end)
        found, ends = jax.device_get((found, ends))
        if all(end["skipped"] for end in ends):
            raise FloatingPointError("update/grad_norm is not finite in any optimizer step of this training step")
        steps = [
            _of_step(sums, self.loss, tokens=count, computed=sum(m.mask.sum() for m in micros)) | end
            for sums, micros, count, end in zip(found, work, tokens, ends, strict=True)
        ]
        metrics = _means([step for step in steps if not step["skipped"]])
        metrics["skipped"] = float(sum(end["skipped"] for end in ends))
        metrics["rows_skipped"] = float((~needed).sum())
        return model, metrics

    def score(self, params: decoder.Params, batch: TrainBatch) -> jax.Array:
        """Log-probs of the response tokens of rows (host arrays) under `params`, at the temperature of training:
        float32 [R, T'], 0 where there is no token, whole on every device."""
        return self._scores(params, batch, self._all(batch))[0]

    def entropies(self, params: decoder.Params, batch: TrainBatch) -> jax.Array:
        """The same of the entropies of what each token was drawn from, in nats."""
        return self._scores(params, batch, self._all(batch))[1]

    def _scores(
        self, params: decoder.Params, batch: TrainBatch, work: list[list[MicroBatch]]
    ) -> tuple[jax.Array, jax.Array]:
        """Both, of the rows that are in the micro-batches of `work`. One micro-batch after the other: a CPU would start
        them all, and the gradients of those that are done, and hold the memory of all of them."""
        found = microbatch.zeros(batch.mask.shape), microbatch.zeros(batch.mask.shape)
        for micro in [micro for micros in work for micro in micros]:
            own = jax.block_until_ready(self._score(params, micro))
            found = tuple(micro.put(numbers, scores) for numbers, scores in zip(found, own, strict=True))
        return found

    def _all(self, batch: TrainBatch) -> list[list[MicroBatch]]:
        """The micro-batches of all rows."""
        return [self.micro_batches(batch, rows) for rows in self._minibatches(batch)]

    def _minibatches(self, batch: TrainBatch) -> list[np.ndarray]:
        """The numbers of the rows of each optimizer step."""
        rows, size = np.arange(len(batch.mask)), self.sizes.minibatch_rows
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _needed(self, batch: TrainBatch, advantages: np.ndarray | jax.Array) -> np.ndarray:
        """bool [R], false where a row has no gradient."""
        if self.loss.all_rows:
            return np.ones(len(batch.mask), bool)
        return ((np.asarray(advantages) != 0) & (batch.mask > 0)).any(1)

    def micro_batches(self, batch: TrainBatch, rows: np.ndarray) -> list[MicroBatch]:
        """The micro-batches of these rows of one minibatch, int [R']."""
        sizes = self.sizes
        return microbatch.micro_batches(
            batch,
            rows,
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


def _score(params: decoder.Params, micro: MicroBatch, *, logprobs: Callable) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies of the response tokens of a micro-batch, float32 [X, Z, C]."""
    return logprobs(params, micro=micro)


def _gradient(
    params: decoder.Params,
    total: decoder.Params,
    micro: MicroBatch,
    numbers: dict[str, jax.Array],
    *,
    logprobs: Callable,
    loss: Loss,
) -> tuple[decoder.Params, Sums]:
    """`total` and the gradient of the summed loss of a micro-batch; and the sums of what is worth logging.

    numbers: of its tokens, float32 [X, Z, C] each; without "old", log-probs are their own.
    """

    def summed_loss(params: decoder.Params) -> tuple[jax.Array, Sums]:
        logps, entropies = logprobs(params, micro=micro)
        old = numbers["old"] if "old" in numbers else jax.lax.stop_gradient(logps)
        value, sums = loss.sums(logps, entropies, numbers | {"old": old}, micro.mask)
        return value, sums | {"logp_gap": (jnp.abs(old - numbers["sampler_logps"]) * micro.mask).sum()}

    grads, sums = jax.grad(summed_loss, has_aux=True)(params)
    return jax.tree.map(jnp.add, total, grads), sums


def _step(
    model: Model,
    total: decoder.Params,
    tokens: jax.Array,
    rate: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[Model, Sums]:
    """The model after one optimizer step with the gradient total / tokens, or as it was where that is not finite."""
    grads = jax.tree.map(lambda g: g / tokens, total)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)

    def step(_: None) -> Model:
        updates, new = optimizer.update(grads, model.optimizer, model.params)
        return Model(optim.apply(model.params, updates, rate), new)

    return jax.lax.cond(finite, step, lambda _: model, None), {"grad_norm": norm, "skipped": 1.0 - finite}


def _of_step(micros: list[Sums], loss: Loss, *, tokens: float, computed: float) -> dict[str, float]:
    """Token means of a minibatch from the sums of its micro-batches; `computed` of its `tokens` are in those."""
    if not micros:
        return dict.fromkeys(loss.of_advantages, 0.0)
    sums = {name: [float(each[name]) for each in micros] for name in micros[0]}
    largest = {"ratio_max": max(sums.pop("ratio_max"))}
    return largest | {
        name: sum(x) / float(tokens if name in loss.of_advantages else computed) for name, x in sums.items()
    }


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
    """Over the optimizer steps that know them."""
    values = {
        name: [step[name] for step in steps if name in step] for name in {k: None for step in steps for k in step}
    }
    return {name: float(max(x) if name == "ratio_max" else np.mean(x)) for name, x in values.items()}
