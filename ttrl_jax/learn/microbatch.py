"""Rows of similar length, cut into micro-batches: the rows of one forward and backward pass."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttrl_jax.model.packing import Packing
from ttrl_jax.model.sharding import constrain
from ttrl_jax.records import VECTOR, TrainBatch, padded_length

SIZES = 16  # a packing has so many sixteenths of the places of its rows, for few shapes to compile
WORTH_PACKING = 12  # sixteenths: with more tokens than that, whole rows cost no more


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MicroBatch:
    """The rows of one pass, split evenly over X shards. A shard is a device (or a group of them) that has its own rows.
    The response tokens are kept apart from the rows, in Z chunks of C places for each shard. All real tokens are in the
    first `chunks` chunks."""

    ids: Any  # int32 [R, T], prompt then response, padded on the right; a shard's rows follow each other; or, packed:
    packing: Packing | None  # of the tokens `ids` [X, N], without each response's last, after which nothing is drawn
    states: Any  # int32 [X, Z, C], which of its shard's R / X * T or N states is the one before the token
    tokens: Any  # int32 [X, Z, C]
    mask: Any  # float32 [X, Z, C], 1 where there is a token
    places: Any  # int32 [X, Z, C], the token's place in the rows of the whole batch, row * T' + place in the response,
    # by which `take` and `put` go; R * T' where there is no token
    chunks: Any  # int32 []

    def take(self, numbers: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
        """Take from numbers [R, T'] those of the tokens of this micro-batch, [X, Z, C], 0 where there is no token.

        What is on the host stays there; what is on the devices goes to those that have the rows.
        """
        if isinstance(numbers, jax.Array):
            return _take(numbers, self.places)
        flat = numbers.reshape(-1)
        return np.where(self.places < len(flat), flat[np.minimum(self.places, len(flat) - 1)], flat.dtype.type(0))

    def taken(self) -> jax.ShapeDtypeStruct:
        """What stands for what `take` makes of numbers that are on the devices."""
        done = _take.lower(jax.ShapeDtypeStruct((1, 1), np.float32), self.places).compile()
        return jax.ShapeDtypeStruct(self.places.shape, np.float32, sharding=done.output_shardings)

    def put(self, numbers: jax.Array, scores: jax.Array) -> jax.Array:
        """`numbers` [R, T'], whole on every device and used up, with `scores` [X, Z, C] where their tokens are: the
        inverse of `take`."""
        return _put(numbers, scores, self.places)


@functools.partial(jax.jit, static_argnames=("shape",))
def zeros(shape: tuple[int, int]) -> jax.Array:
    """An array of zeros, float32 [R, T'], for `put`. Every device holds all of it."""
    return constrain(jnp.zeros(shape, jnp.float32), None, None)


@jax.jit
def _take(numbers: jax.Array, places: jax.Array) -> jax.Array:
    found = jnp.take(numbers.reshape(-1), places, mode="fill", fill_value=0)
    return constrain(found, "rows", None, None)


@functools.partial(jax.jit, donate_argnames=("numbers",))
def _put(numbers: jax.Array, scores: jax.Array, places: jax.Array) -> jax.Array:
    whole = numbers.reshape(-1).at[places].set(constrain(scores, None, None, None), mode="drop")
    return constrain(whole.reshape(numbers.shape), None, None)


@dataclass(frozen=True)
class Kinds:
    """The few shapes that micro-batches have."""

    tokens: int  # that a shard computes
    rows: tuple[tuple[int, int], ...]  # rows and places of a shard as attention sees them, of the longest rows first


def micro_batches(
    batch: TrainBatch,
    rows: np.ndarray,
    *,
    shards: int,
    tokens: int,
    chunk: int,
    full: int,
    kinds: Kinds | None = None,
    longest: int,
) -> list[MicroBatch]:
    """Cut the rows of a batch (host arrays) whose numbers are in `rows`, int [R'], into micro-batches of at most
    `tokens` tokens for each shard, padding included. A longer row goes alone.

    chunk: the most places of a shard whose logits exist at once. full: the rows of a whole minibatch. longest: the most
    tokens that any row of a run may have. kinds: the shapes that micro-batches may have, as of `few_shapes`; by default
    as many as suit the rows.
    """
    if kinds is not None:
        return _few(batch, rows, kinds, shards=shards, chunk=chunk)
    return _many(batch, rows, shards=shards, tokens=tokens, chunk=chunk, full=full, longest=longest)


def few_shapes(*, tokens: int, rows: int, longest: int, even: float) -> Kinds:
    """The shapes of micro-batches where a run has few of them.

    tokens: of a shard in one pass, at most; a longer row goes alone. rows: of a shard in a minibatch; no micro-batch is
    larger than their tokens. longest: the most tokens that a row may have. even: tokens of a row at which attention
    costs what the products with weights do (`shapes.even_length`).

    Attention computes all rows of a shape, also those that stay empty. Where it costs little, there are two shapes, for
    rows of any and of half the length, with two and three times the places of the tokens: short rows fill a pass too.
    Where it costs much, in rows longer than `even` / 4, there are three, for rows of any, of half and of a quarter of
    the length, with one, two and two times the places.
    """
    width = padded_length(longest, longest)
    size = max(1, min(tokens // width, rows)) * width
    parts = ((1, 1), (2, 2), (4, 2)) if 4 * width > even else ((1, 2), (2, 3))
    found = {}
    for part, times in parts:
        places = -(-width // (part * VECTOR)) * VECTOR
        found.setdefault(places, (-(-times * size // places), places))
    return Kinds(size, tuple(found.values()))


def _few(batch: TrainBatch, rows: np.ndarray, kinds: Kinds, *, shards: int, chunk: int) -> list[MicroBatch]:
    """Micro-batches of few shapes, packed without much padding. Each takes the longest row that is left. Then it takes
    every later row for whose tokens it has room. The tokens of a prompt that it already has do not count."""
    size = kinds.tokens
    lengths = batch.prompt_lengths + batch.mask.sum(1).astype(np.int32)
    order, pieces = rows[np.argsort(-lengths[rows], kind="stable")].tolist(), []
    while order:
        height, width = next(kind for kind in reversed(kinds.rows) if kind[1] >= lengths[order[0]])
        taken = [([], set()) for _ in range(shards)]  # of each shard: rows, and their prompts
        used, left = [0] * shards, []
        for row in order:
            shard = int(np.argmin(used))
            mine, prompts = taken[shard]
            prompt = batch.ids[row, : batch.prompt_lengths[row]].tobytes()
            more = int(lengths[row]) - 1 - (int(batch.prompt_lengths[row]) if prompt in prompts else 0)
            if len(mine) == height or used[shard] + more > size:
                left.append(row)
                continue
            mine.append(row)
            prompts.add(prompt)
            used[shard] += more
        order = left
        piece = np.array([mine + [-1] * (height - len(mine)) for mine, _ in taken])
        ids, packing, _ = _packed(batch, piece, width, size)
        pieces.append(_micro_batch(batch, piece, width, min(size + height, height * width), chunk, ids, packing))
    return pieces


def _many(
    batch: TrainBatch, rows: np.ndarray, *, shards: int, tokens: int, chunk: int, full: int, longest: int
) -> list[MicroBatch]:
    """Micro-batches of many shapes. The longest rows come first. All rows of a micro-batch are padded to one length,
    the `padded_length` of its longest row. That length and `full` decide how many rows it has. If half, or a quarter,
    as many rows are enough for all rows longer than half of that length, it has half, or a quarter, as many. Where
    packing saves a quarter of the tokens, the rows are packed: a prompt that several rows share is computed once, and
    there is no padding."""
    lengths = batch.prompt_lengths + batch.mask.sum(1).astype(np.int32)
    rungs = np.array([padded_length(int(length), longest) for length in lengths], np.int32)
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    pieces = []
    while len(order):
        width = int(rungs[order[0]])
        height = _rows(-(-full // shards), max(1, tokens // width))
        long = int((2 * rungs[order] > width).sum())  # what is shorter had better wait for the next
        for _ in range(2):
            if long <= -(-height // 2) * shards:
                height = -(-height // 2)
        piece, order = order[: height * shards], order[height * shards :]
        # Dealt out in turn, so that every shard gets long rows and short ones. -1: a row of padding.
        piece = np.pad(piece, (0, height * shards - len(piece)), constant_values=-1).reshape(height, shards).T
        ids, packing, used = _packed(batch, piece, width, height * width)
        sixteenths = -(-used * SIZES // (height * width))
        if sixteenths <= WORTH_PACKING:
            keep = -(-height * width * sixteenths // SIZES)
            cut = dict(positions=packing.positions[:, :keep], places=packing.places[:, :keep])
            ids, packing = ids[:, :keep], dataclasses.replace(packing, **cut)
        else:
            ids, packing = _whole(batch, piece, width), None
        pieces.append(_micro_batch(batch, piece, width, height * width, chunk, ids, packing))
    return pieces


def _rows(full: int, most: int) -> int:
    """How many rows a micro-batch has if `full` rows are cut into as few pieces as possible, all of one size, of at
    most `most` rows."""
    return -(-full // -(-full // most))


def _whole(batch: TrainBatch, rows: np.ndarray, width: int) -> np.ndarray:
    """The rows [X, rows of a shard] of a batch, padded to `width`: int32 [X * rows of a shard, width]."""
    rows = rows.reshape(-1)
    ids = np.zeros((len(rows), width), np.int32)
    cut = batch.ids[:, :width]
    ids[:, : cut.shape[1]] = np.where(rows[:, None] >= 0, cut[rows], 0)
    return ids


def _packed(batch: TrainBatch, rows: np.ndarray, width: int, size: int) -> tuple[np.ndarray, Packing, int]:
    """The tokens of the rows, int32 [X, size]; the packing, which says how rows are made of tokens; and the largest
    number of tokens that a shard has."""
    shards, height = rows.shape
    ids, positions, places = (np.zeros((shards, size), np.int32) for _ in range(3))
    index = np.zeros((shards, height, width), np.int32)
    prompts, owners = (np.zeros((shards, height), np.int32) for _ in range(2))
    used = 0
    for shard, own in enumerate(rows):
        begins, count = {}, 0  # of each prompt, its row and its first token's number; tokens so far
        for i, row in enumerate(own):
            if row < 0:
                continue
            prompt, length = batch.prompt_lengths[row], batch.prompt_lengths[row] + int(batch.mask[row].sum()) - 1
            text = batch.ids[row, :prompt].tobytes()
            done = prompt if text in begins else 0
            owners[shard, i], begin = begins.setdefault(text, (i, count))
            prompts[shard, i], index[shard, i, :done] = prompt, begin + np.arange(done)
            new, there = slice(count, count + length - done), np.arange(done, length)
            ids[shard, new], positions[shard, new] = batch.ids[row, done:length], there
            places[shard, new], index[shard, i, done:length] = i * width + there, np.arange(count, new.stop)
            count = new.stop
        used = max(used, count)
    return ids, Packing(positions, index, places, prompts, owners), used


def _micro_batch(
    batch: TrainBatch, rows: np.ndarray, width: int, most: int, chunk: int, ids: np.ndarray, packing: Packing | None
) -> MicroBatch:
    """A micro-batch of the rows [X, rows of a shard] of a batch, whose tokens are `ids` and `packing`. most: how many
    response tokens a shard may have."""
    shards, height = rows.shape
    # A quarter of what there may be: little is computed in vain, and the logits' programs stay as many as the rows'.
    slots = min(chunk, -(-most // 4))
    shape = (shards, -(-most // slots), slots)
    real = (batch.mask[rows] > 0) & (rows >= 0)[..., None]  # [X, rows of a shard, T']
    shard, row, at = np.nonzero(real)
    source = rows[shard, row]
    place = np.arange(len(shard)) - np.searchsorted(shard, shard)  # counts from 0 in each shard
    before = batch.prompt_lengths[source] - 1 + at

    def lay(values: np.ndarray, dtype: type, padding: int = 0) -> np.ndarray:
        out = np.full((shards, shape[1] * slots), padding, dtype)
        out[shard, place] = values
        return out.reshape(shape)

    return MicroBatch(
        ids=ids,
        packing=packing,
        states=lay(packing.rows[shard, row, before] if packing else row * width + before, np.int32),
        tokens=lay(batch.responses[source, at], np.int32),
        mask=lay(1, np.float32),
        places=lay(source * batch.mask.shape[1] + at, np.int32, padding=batch.mask.size),
        chunks=np.int32(-(-int(real.sum((1, 2)).max()) // slots)),
    )
