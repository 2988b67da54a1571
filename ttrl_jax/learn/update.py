"""The update: for each minibatch, compute the gradient one micro-batch at a time, and take one optimizer step."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ttrl_jax.learn import microbatch
from ttrl_jax.learn import optimizer as optim
from ttrl_jax.learn.batch import full_rows
from ttrl_jax.learn.layout import sums_layout
from ttrl_jax.learn.loss import Loss, Sums
from ttrl_jax.learn.microbatch import Kinds, MicroBatch, few_shapes
from ttrl_jax.learn.rounding import Seed
from ttrl_jax.model import decoder
from ttrl_jax.records import Model, TrainBatch
from ttrl_jax.run.compiled import Announce, Compiled

Numbers = Mapping[str, np.ndarray | jax.Array]  # by name, of each response token: float32 [R, T']
# (params, base, micro=...) -> scores and entropies of a micro-batch, float32 [X, Z, C]; base: see Update.__call__.
Forward = Callable[..., tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is computed at once (microbatch.micro_batches). Sizes change memory and rounding, and no result."""

    minibatch_rows: int  # rows of one optimizer step
    micro_tokens: int  # tokens of a shard, padding included, in one forward and backward pass
    chunk_tokens: int  # response tokens of a shard with logits at a time
    longest: int  # the most tokens of a row: prompt and response
    shards: int  # parts that rows are split into, over the batch axes of the mesh
    in_place: bool  # whether gradients of layers are added up where they are computed; for remat "full"
    few: bool  # whether passes have few shapes (microbatch.few_shapes), for devices that take long to compile one
    even: float = math.inf  # tokens of a row in which attention costs as much as the rest; decides those shapes

    def kinds(self, *, scores: bool = False) -> Kinds | None:
        """The shapes of all passes where they are few, or of those that only compute scores: two, as these are cheap;
        None where there may be many."""
        if not self.few:
            return None
        rows = -(-self.minibatch_rows // self.shards)
        found = few_shapes(tokens=self.micro_tokens, rows=rows, longest=self.longest, even=self.even)
        return dataclasses.replace(found, rows=found.rows[:2]) if scores else found


class Update:
    """Compiled learning programs for one model.

    name: of the model, in announcements; the policy's have none. forward: what the model says of each response token.
    reference: parameters of the frozen start, or None for a loss that does not ask for them. shardings: the layout that
    the model keeps. announce: told of each compile. seed: of the rounding of masters in bfloat16. compiler_options: as
    in jax.jit.
    """

    def __init__(
        self,
        forward: Forward,
        optimizer: optax.GradientTransformation,
        *,
        name: str = "",
        loss: Loss,
        sizes: Sizes,
        reference: decoder.Params | None,
        shardings: Model,
        announce: Announce,
        seed: Seed = (0,),
        compiler_options: dict[str, Any] | None = None,
    ):
        self.loss, self.sizes, self.reference = loss, sizes, reference
        before, self._metrics = (f"{name} ", name) if name else ("", "update")
        self._zeros = jax.jit(
            lambda params: jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params),
            out_shardings=shardings.params,
        )
        compiled = functools.partial(Compiled, announce=announce, compiler_options=compiler_options)
        self._score = compiled(f"{before}score", functools.partial(_score, forward=forward), words=_rows)
        self._gradient = compiled(
            f"{before}gradient",
            functools.partial(_gradient, forward=forward, loss=loss, in_place=sizes.in_place),
            words=_rows,
            donate_argnames=("total",),
            out_shardings=(shardings.params, None, None),
        )
        self._step = compiled(
            f"{before}optimizer step",
            functools.partial(_step, optimizer=optimizer, seed=seed),
            donate_argnames=("model",),
            out_shardings=(shardings, None),
        )

    def __call__(
        self,
        model: Model,
        batch: TrainBatch,
        numbers: Numbers,
        rate: float,
        *,
        base: decoder.Params | None = None,
    ) -> tuple[Model, dict[str, float], jax.Array | None]:
        """Train on P * G rows (host arrays) at learning rate `rate`; `model` is used up.

        numbers: "advantages", and what else the loss asks for, in the order of the rows. Old scores come from the
        training graph, before the first optimizer step, unless they are given: those of a single minibatch are its own,
        so that nothing is computed for them. base: parameters that `forward` uses and that are not trained.

        Returns the new model; the means over the optimizer steps of what is worth logging, less what is only known of
        rows that were computed where none were; and what the loss keeps, [R, T'], of the gradients' own forward passes,
        each before its optimizer step. Raises FloatingPointError when no optimizer step had a finite gradient; single
        ones without are skipped and counted, as in the reference.
        """
        needed, minibatches = self._needed(batch, numbers), self._minibatches(batch)
        work = [self.micro_batches(batch, rows[needed[rows]]) for rows in minibatches]
        tokens = [batch.mask[rows].sum() for rows in minibatches]
        counts = tokens
        if self.loss.row_counts is not None:
            counts = [np.float32(len(rows) * self.loss.row_counts) for rows in minibatches]
        numbers = {**numbers, "sampler_logps": batch.sampler_logps}
        if len(work) > 1 and self.loss.asks_old and "old" not in numbers:
            numbers["old"], _ = self._scores(model.params, base, batch, [rows[needed[rows]] for rows in minibatches])
        found, ends, kept = [], [], microbatch.zeros(batch.mask.shape) if self.loss.keep else None
        for micros, count in zip(work, counts, strict=True):
            total, sums = self._zeros(model.params), []
            for micro in micros:
                own = {name: micro.take(values) for name, values in numbers.items()}
                total, of_micro, found_here = self._gradient(model.params, base, self.reference, total, micro, own)
                sums.append(of_micro)
                kept = None if kept is None else micro.put(kept, found_here)
            model, end = self._step(model, total, count, np.float32(rate))
            found.append(sums)
            ends.append(end)
        found, ends = jax.device_get((found, ends))
        if all(end["skipped"] for end in ends):
            raise FloatingPointError(f"{self._metrics}/grad_norm is not finite in any optimizer step")
        steps = [
            _of_step(sums, self.loss, tokens=number, count=count, computed=sum(m.mask.sum() for m in micros)) | end
            for sums, micros, number, count, end in zip(found, work, tokens, counts, ends, strict=True)
        ]
        metrics = _means([step for step in steps if not step["skipped"]], self.loss)
        metrics["skipped"] = float(sum(end["skipped"] for end in ends))
        metrics["rows_skipped"] = float((~needed).sum())
        return model, metrics, kept

    def score(self, params: decoder.Params, batch: TrainBatch, *, base: decoder.Params | None = None) -> jax.Array:
        """Log-probs of the response tokens of rows (host arrays) under `params`, at the temperature of training, or a
        critic's values: float32 [R, T'], 0 where there is no token, whole on every device."""
        return self._scores(params, base, batch, self._minibatches(batch))[0]

    def entropies(self, params: decoder.Params, batch: TrainBatch, *, base: decoder.Params | None = None) -> jax.Array:
        """Entropies, in nats, of the distributions that the tokens were drawn from; shapes are those of `score`."""
        return self._scores(params, base, batch, self._minibatches(batch))[1]

    def _scores(
        self,
        params: decoder.Params,
        base: decoder.Params | None,
        batch: TrainBatch,
        minibatches: list[np.ndarray],
    ) -> tuple[jax.Array, jax.Array]:
        """Scores and entropies of these rows of each minibatch, int [R']. Each micro-batch waits for the one before.
        Otherwise a CPU would start all of them at once, and hold the memory of all of them."""
        work = [self.micro_batches(batch, rows, scores=True) for rows in minibatches]
        found = microbatch.zeros(batch.mask.shape), microbatch.zeros(batch.mask.shape)
        for micro in [micro for micros in work for micro in micros]:
            own = jax.block_until_ready(self._score(params, base, micro))
            found = tuple(micro.put(numbers, scores) for numbers, scores in zip(found, own, strict=True))
        return found

    def _minibatches(self, batch: TrainBatch) -> list[np.ndarray]:
        """The numbers of the rows of each optimizer step."""
        rows, size = np.arange(len(batch.mask)), self.sizes.minibatch_rows
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _needed(self, batch: TrainBatch, numbers: Numbers) -> np.ndarray:
        """bool [R], false where a row has no gradient."""
        if self.loss.all_rows:
            return np.ones(len(batch.mask), bool)
        return ((np.asarray(numbers["advantages"]) != 0) & (batch.mask > 0)).any(1)

    def micro_batches(self, batch: TrainBatch, rows: np.ndarray, *, scores: bool = False) -> list[MicroBatch]:
        """The micro-batches of these rows of one minibatch, int [R']. scores: if only these are computed."""
        sizes = self.sizes
        return microbatch.micro_batches(
            batch,
            rows,
            shards=sizes.shards,
            tokens=sizes.micro_tokens,
            chunk=sizes.chunk_tokens,
            full=sizes.minibatch_rows,
            longest=sizes.longest,
            kinds=sizes.kinds(scores=scores),
        )

    def kinds(self, *, scores: bool = False) -> list[MicroBatch]:
        """A micro-batch of each shape, where a run has few, the longest rows first. scores: as of `micro_batches`."""
        found = []
        for _, places in self.sizes.kinds(scores=scores).rows:
            batch = full_rows(self.sizes.minibatch_rows, length=min(places, self.sizes.longest), tokens=1)
            found.append(self.micro_batches(batch, np.arange(len(batch.mask)), scores=scores)[0])
        return found

    def work(
        self, model: Model, *, base: decoder.Params | None, rows: int, scores: bool = False
    ) -> Iterator[Callable[[], Any]]:
        """Functions that each compile one of the programs that take long, if a run has few programs. Nothing runs.

        model, base: jax.ShapeDtypeStructs. rows: how many rows a training step has. scores: whether the run asks for
        scores or entropies too.
        """
        sums = sums_layout(model.params)
        own_old = rows > self.sizes.minibatch_rows and self.loss.asks_old and "old" not in self.loss.names
        if scores or own_old or "old" in self.loss.names:
            for micro in self.kinds(scores=True):
                yield functools.partial(self._score.prepare, model.params, base, micro)
        for micro in self.kinds():
            numbers = dict.fromkeys((*self.loss.names, "sampler_logps"), micro.mask)
            if own_old:
                numbers["old"] = micro.taken()
            yield functools.partial(self._gradient.prepare, model.params, base, self.reference, sums, micro, numbers)
        yield functools.partial(self._step.prepare, model, sums, np.float32(1), np.float32(1))

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return sum(program.compile_seconds for program in (self._score, self._gradient, self._step))


def _rows(*args: Any) -> str:
    """What a program is compiled for, in words."""
    micro = next(each for each in args if isinstance(each, MicroBatch))
    rows, tokens = micro.ids.shape
    return f"{rows} x {tokens} tokens"


def _score(
    params: decoder.Params, base: decoder.Params | None, micro: MicroBatch, *, forward: Forward
) -> tuple[jax.Array, jax.Array]:
    """Scores and entropies of the response tokens of a micro-batch, float32 [X, Z, C]."""
    return forward(params, base, micro=micro)


def _gradient(
    params: decoder.Params,
    base: decoder.Params | None,
    reference: decoder.Params | None,
    total: decoder.Params,
    micro: MicroBatch,
    numbers: dict[str, jax.Array],
    *,
    forward: Forward,
    loss: Loss,
    in_place: bool,
) -> tuple[decoder.Params, Sums, jax.Array | None]:
    """`total` (float32) and the gradient of the summed loss of a micro-batch; the sums of what is worth logging; and
    what the loss keeps.

    The gradient to weights in bfloat16 is rounded to bfloat16, but for that of layers with in_place, and then added.

    numbers: of its tokens, float32 [X, Z, C] each; without "old", scores are their own. Those under `reference`, if it
    is given, are computed here: each row comes once, so that a program of their own would save nothing.
    """
    if reference is not None:
        scores, _ = forward(reference, base, micro=micro)
        # One after the other, so that what the two need is never there together.
        ids, scores = jax.lax.optimization_barrier((micro.ids, scores))
        micro, numbers = dataclasses.replace(micro, ids=ids), numbers | {"reference": scores}

    def summed_loss(learned: decoder.Params) -> tuple[jax.Array, tuple[Sums, jax.Array | None]]:
        scores, entropies = forward(_at_blocks(_tapped, learned, params) if in_place else learned, base, micro=micro)
        old = numbers["old"] if "old" in numbers else jax.lax.stop_gradient(scores)
        value, sums = loss.sums(scores, entropies, numbers | {"old": old}, micro.mask)
        return value, (sums, loss.keep(scores, numbers) if loss.keep else None)

    learned = _at_blocks(_the_others, params, total) if in_place else params  # of layers, their sums
    grads, (sums, kept) = jax.grad(summed_loss, has_aux=True)(learned)
    added = jax.tree.map(jnp.add, total, grads)
    return _at_blocks(_the_others, added, grads) if in_place else added, sums, kept


def _at_blocks(change: Callable[[Any, Any], Any], params: decoder.Params, others: decoder.Params) -> decoder.Params:
    """`params` with change(its layers, those of `others`) in place of the layers, at any depth."""

    def one(name: str, each: Any) -> Any:
        if name == "blocks":
            return change(each, others[name])
        return _at_blocks(change, each, others[name]) if isinstance(each, dict) else each

    return {name: one(name, each) for name, each in params.items()}


def _the_others(own: Any, others: Any) -> Any:
    return others


def _tapped(sums: decoder.Params, weights: decoder.Params) -> decoder.Tapped:
    return decoder.Tapped(weights, total=sums)


def _step(
    model: Model,
    total: decoder.Params,
    count: jax.Array,
    rate: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    seed: Seed,
) -> tuple[Model, Sums]:
    """The model after one optimizer step with the gradient total / count, or as it was where that is not finite."""
    norm = optax.tree.norm(jax.tree.map(lambda g: g / count, total))
    finite = jnp.isfinite(norm)

    def step(_: None) -> Model:
        grads = jax.tree.map(lambda g: g / count, total)  # here, or the means would be there beside the sums
        return Model(*optim.step(optimizer, grads, model.optimizer, model.params, rate, seed=seed))

    return jax.lax.cond(finite, step, lambda _: model, None), {"grad_norm": norm, "skipped": 1.0 - finite}


def _of_step(micros: list[Sums], loss: Loss, *, tokens: float, count: float, computed: float) -> dict[str, float]:
    """Means of a minibatch from the sums of its micro-batches, of whose `tokens` `computed` are in those; count: what
    the loss is divided by."""
    if not micros:
        return dict.fromkeys(loss.of_advantages, 0.0)
    sums = {name: [float(each[name]) for each in micros] for name in micros[0]}
    over = (
        dict.fromkeys(sums, computed) | dict.fromkeys(loss.of_advantages, tokens) | dict.fromkeys(loss.by_rows, count)
    )
    return {name: max(x) if name in loss.largest else sum(x) / float(over[name]) for name, x in sums.items()}


def _means(steps: list[dict[str, float]], loss: Loss) -> dict[str, float]:
    """Over the optimizer steps that know them."""
    values = {
        name: [step[name] for step in steps if name in step] for name in {k: None for step in steps for k in step}
    }
    return {name: float(max(x) if name in loss.largest else np.mean(x)) for name, x in values.items()}
