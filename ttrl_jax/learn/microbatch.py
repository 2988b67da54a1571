"""Rows of like length, cut into pieces of one forward and backward pass each."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ttrl_jax.model.decoder import Packing
from ttrl_jax.records import TrainBatch, padded_length

SIZES = 16  # a packing has so many sixteenths of the places of its rows, for few shapes to compile
WORTH_PACKING = 12  # sixteenths: with more tokens than that, whole rows cost no more


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MicroBatch:
    """Rows of one pass, split evenly over X shards: the devices that rows are split over, so that each looks up only
    its own. The response tokens stand apart from their rows, in Z chunks of C places for each shard; the first `chunks`
    of them hold all that is real."""

    ids: Any  # int32 [R, T], prompt then response, padded on the right; a shard's rows follow each other; or, packed:
    packing: Packing | None  # of the tokens `ids` [X, N], without each response's last, after which nothing is drawn
    states: Any  # int32 [X, Z, C], which of its shard's R / X * T or N states is the one before the token
    tokens: Any  # int32 [X, Z, C]
    mask: Any  # float32 [X, Z, C], 1 where there is a token
    sampler_logps: Any  # float32 [X, Z, C]
    advantages: Any  # float32 [X, Z, C]
    chunks: Any  # int32 []


def micro_batches(
    batch: TrainBatch, *, shards: int, tokens: int, chunk: int, full: int, longest: int, pack: bool
) -> list[MicroBatch]:
    """Cut rows (host arrays) into micro-batches of at most `tokens` tokens for each shard, padding included.

    A longer row goes alone. The longest come first; each micro-batch is padded to the rung of its longest
    (records.padded_length; longest: the most tokens that any row of a run may have). How many rows go together depends
    only on that rung and on `full`, the rows of a whole minibatch; or it is a half or a quarter of that, where no more
    have a rung of more than half of it. So there are few shapes to compile. chunk: the most places of a shard whose
    logits exist at once. pack: whether prompts that several rows have are computed once, and padding not at all, where
    that makes a quarter of the tokens less.
    """
    lengths = batch.prompt_lengths + batch.mask.sum(1).astype(np.int32)
    rungs = np.array([padded_length(int(length), longest) for length in lengths], np.int32)
    order = np.argsort(-lengths, kind="stable")
    pieces = []
    while len(order):
        width = int(rungs[order[0]])
        rows = _rows(-(-full // shards), max(1, tokens // width))
        long = int((2 * rungs[order] > width).sum())  # what is shorter had better wait for the next
        for _ in range(2):
            if long <= -(-rows // 2) * shards:
                rows = -(-rows // 2)
        piece, order = order[: rows * shards], order[rows * shards :]
        # Dealt out in turn, so that every shard gets long rows and short ones. -1: a row of padding.
        piece = np.pad(piece, (0, rows * shards - len(piece)), constant_values=-1).reshape(rows, shards).T
        ids, packing = _packed(batch, piece, width) if pack else (None, None)
        if packing is None:
            ids = _whole(batch, piece, width)
        pieces.append(_micro_batch(batch, piece, width, chunk, ids, packing))
    return pieces


def _rows(full: int, most: int) -> int:
    """Rows of a micro-batch, so that `full` rows are cut into as few even pieces as hold `most` each."""
    return -(-full // -(-full // most))


def _whole(batch: TrainBatch, rows: np.ndarray, width: int) -> np.ndarray:
    """The rows [X, rows of a shard] of a batch, padded to `width`: int32 [X * rows of a shard, width]."""
    rows = rows.reshape(-1)
    ids = np.zeros((len(rows), width), np.int32)
    cut = batch.ids[:, :width]
    ids[:, : cut.shape[1]] = np.where(rows[:, None] >= 0, cut[rows], 0)
    return ids


def _packed(batch: TrainBatch, rows: np.ndarray, width: int) -> tuple[np.ndarray, Packing | None]:
    """The tokens of the same rows, int32 [X, N], and how the rows are made of them; None if that is not worth it."""
    shards, height = rows.shape
    size = height * width
    ids, positions, places = (np.zeros((shards, size), np.int32) for _ in range(3))
    index = np.zeros((shards, height, width), np.int32)
    used = 0
    for shard, own in enumerate(rows):
        begins, count = {}, 0  # of each prompt, its first token's number; tokens so far
        for i, row in enumerate(own):
            if row < 0:
                continue
            prompt, length = batch.prompt_lengths[row], batch.prompt_lengths[row] + int(batch.mask[row].sum()) - 1
            text = batch.ids[row, :prompt].tobytes()
            done = prompt if text in begins else 0
            index[shard, i, :done] = begins.setdefault(text, count) + np.arange(done)
            new, there = slice(count, count + length - done), np.arange(done, length)
            ids[shard, new], positions[shard, new] = batch.ids[row, done:length], there
            places[shard, new], index[shard, i, done:length] = i * width + there, np.arange(count, new.stop)
            count = new.stop
        used = max(used, count)
    sixteenths = -(-used * SIZES // size)
    keep = -(-size * sixteenths // SIZES)
    packing = Packing(positions[:, :keep], index, places[:, :keep]) if sixteenths <= WORTH_PACKING else None
    return ids[:, :keep], packing


def _micro_batch(
    batch: TrainBatch, rows: np.ndarray, width: int, chunk: int, ids: np.ndarray, packing: Packing | None
) -> MicroBatch:
    """The rows [X, rows of a shard] of a batch, which `ids` and `packing` hold, with what is asked of each token."""
    shards, height = rows.shape
    # A quarter of what there may be: little is computed in vain, and the logits' programs stay as many as the rows'.
    slots = min(chunk, -(-height * width // 4))
    shape = (shards, -(-height * width // slots), slots)
    real = (batch.mask[rows] > 0) & (rows >= 0)[..., None]  # [X, rows of a shard, T']
    shard, row, at = np.nonzero(real)
    source = rows[shard, row]
    place = np.arange(len(shard)) - np.searchsorted(shard, shard)  # counts from 0 in each shard
    before = batch.prompt_lengths[source] - 1 + at

    def lay(values: np.ndarray, dtype: type) -> np.ndarray:
        out = np.zeros((shards, shape[1] * slots), dtype)
        out[shard, place] = values
        return out.reshape(shape)

    return MicroBatch(
        ids=ids,
        packing=packing,
        states=lay(packing.rows[shard, row, before] if packing else row * width + before, np.int32),
        tokens=lay(batch.responses[source, at], np.int32),
        mask=lay(1, np.float32),
        sampler_logps=lay(batch.sampler_logps[source, at], np.float32),
        advantages=lay(batch.advantages[source], np.float32),
        chunks=np.int32(-(-int(real.sum((1, 2)).max()) // slots)),
    )
