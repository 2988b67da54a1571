"""Rows of like length, cut into pieces of one forward and backward pass each."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ttrl_jax.records import TrainBatch, padded_length


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MicroBatch:
    """Rows of one pass, split evenly over X shards: the devices that rows are split over, so that each looks up only
    its own. The response tokens stand apart from their rows, in Z chunks of C places for each shard; the first `chunks`
    of them hold all that is real."""

    ids: Any  # int32 [R, T], prompt then response, padded on the right; a shard's rows follow each other
    states: Any  # int32 [X, Z, C], which of its shard's R / X * T states is the one before the token
    tokens: Any  # int32 [X, Z, C]
    mask: Any  # float32 [X, Z, C], 1 where there is a token
    sampler_logps: Any  # float32 [X, Z, C]
    advantages: Any  # float32 [X, Z, C]
    chunks: Any  # int32 []


def micro_batches(batch: TrainBatch, *, shards: int, tokens: int, chunk: int, full: int) -> list[MicroBatch]:
    """Cut rows (host arrays) into micro-batches of at most `tokens` tokens for each shard, padding included.

    A longer row goes alone. The longest come first; each micro-batch is padded to the rung of its longest
    (records.padded_length). How many rows go together depends only on that rung and on `full`, the rows of a whole
    minibatch; or it is a half or a quarter of that, where no more have a rung of more than half of it. So there are few
    shapes to compile. chunk: the most places of a shard whose logits exist at once.
    """
    lengths = batch.prompt_lengths + batch.mask.sum(1).astype(np.int32)
    rungs = np.array([padded_length(int(length)) for length in lengths], np.int32)
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
        pieces.append(_micro_batch(batch, piece, width, chunk))
    return pieces


def _rows(full: int, most: int) -> int:
    """Rows of a micro-batch, so that `full` rows are cut into as few even pieces as hold `most` each."""
    return -(-full // -(-full // most))


def _micro_batch(batch: TrainBatch, rows: np.ndarray, width: int, chunk: int) -> MicroBatch:
    """The rows [X, rows of a shard] of a batch, padded to `width`."""
    shards, height = rows.shape
    # A quarter of what there may be: little is computed in vain, and the logits' programs stay as many as the rows'.
    slots = min(chunk, -(-height * width // 4))
    shape = (shards, -(-height * width // slots), slots)
    real = (batch.mask[rows] > 0) & (rows >= 0)[..., None]  # [X, rows of a shard, T']
    shard, row, at = np.nonzero(real)
    source = rows[shard, row]
    place = np.arange(len(shard)) - np.searchsorted(shard, shard)  # counts from 0 in each shard

    def lay(values: np.ndarray, dtype: type) -> np.ndarray:
        out = np.zeros((shards, shape[1] * slots), dtype)
        out[shard, place] = values
        return out.reshape(shape)

    ids = np.zeros((shards * height, width), np.int32)
    cut = batch.ids[:, :width]
    ids[:, : cut.shape[1]] = np.where(rows.reshape(-1, 1) >= 0, cut[rows.reshape(-1)], 0)
    return MicroBatch(
        ids=ids,
        states=lay(row * width + batch.prompt_lengths[source] - 1 + at, np.int32),
        tokens=lay(batch.responses[source, at], np.int32),
        mask=lay(1, np.float32),
        sampler_logps=lay(batch.sampler_logps[source, at], np.float32),
        advantages=lay(batch.advantages[source], np.float32),
        chunks=np.int32(-(-int(real.sum((1, 2)).max()) // slots)),
    )
