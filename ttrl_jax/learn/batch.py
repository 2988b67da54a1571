"""From rollouts to rows: the samples that are trained on, padded to a short ladder of lengths."""

import numpy as np

from ttrl_jax.records import Prompts, Rollouts, TrainBatch, padded_length


def full_rows(rows: int, *, length: int, tokens: int) -> TrainBatch:
    """Rows of `length` tokens. The last `tokens` tokens of a row are the response. No two rows have the same prompt."""
    ids = np.zeros((rows, length), np.int32)
    ids[:, 0] = np.arange(rows)
    return TrainBatch(
        ids=ids,
        prompt_lengths=np.full(rows, length - tokens, np.int32),
        responses=np.zeros((rows, tokens), np.int32),
        mask=np.ones((rows, tokens), np.float32),
        sampler_logps=np.zeros((rows, tokens), np.float32),
    )


def train_batch(prompts: Prompts, rollouts: Rollouts, chosen: np.ndarray) -> TrainBatch:
    """Lay the chosen samples out as rows, question by question.

    chosen int32 [P, G] (sample indices). Returns a TrainBatch of P * G rows (host arrays); row p * G + g is sample
    chosen[p, g] of prompt p.
    """
    p, g = chosen.shape
    take = np.arange(p)[:, None], chosen
    lengths = rollouts.lengths[take].reshape(-1)
    prompt_lengths = np.repeat(prompts.lengths, g)
    width = padded_length(int(lengths.max()))
    mask = np.arange(width) < lengths[:, None]

    def cut(x: np.ndarray) -> np.ndarray:
        x = x[take].reshape(p * g, -1)[:, :width]
        return np.where(mask, np.pad(x, [(0, 0), (0, width - x.shape[1])]), 0)

    responses = cut(rollouts.tokens)
    ids = np.zeros((p * g, padded_length(int((prompt_lengths + lengths).max()))), np.int32)
    for row, start in enumerate(prompt_lengths):
        ids[row, :start] = prompts.ids[row // g, :start]
        ids[row, start : start + lengths[row]] = responses[row, : lengths[row]]
    return TrainBatch(
        ids=ids,
        prompt_lengths=prompt_lengths.astype(np.int32),
        responses=responses.astype(np.int32),
        mask=mask.astype(np.float32),
        sampler_logps=cut(rollouts.logps).astype(np.float32),
    )
