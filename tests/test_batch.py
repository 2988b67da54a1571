"""Hand-worked: where each token of the chosen samples goes."""

import numpy as np
import pytest

from ttrl_jax.learn.batch import train_batch
from ttrl_jax.records import Prompts, Rollouts, padded_length


def make(prompt_lengths, lengths, *, limit):
    """Prompt tokens are 100 p + i, response tokens 1000 p + 100 v + i + 50; what pads them is -1."""
    lengths, prompt_lengths = np.array(lengths, np.int32), np.array(prompt_lengths, np.int32)
    p, v = lengths.shape
    at = np.arange(max(prompt_lengths) + 2)
    ids = np.where(at < prompt_lengths[:, None], 100 * np.arange(p)[:, None] + at, -1).astype(np.int32)
    names = 1000 * np.arange(p)[:, None, None] + 100 * np.arange(v)[:, None] + np.arange(limit) + 50
    real = np.arange(limit) < lengths[..., None]
    tokens = np.where(real, names, -1).astype(np.int32)
    rollouts = Rollouts(tokens, lengths, (-tokens / 10).astype(np.float32), np.zeros((p, v), bool), 0)
    return Prompts(ids, prompt_lengths, np.arange(p, dtype=np.uint32)), rollouts


def test_rows_by_hand():
    prompts, rollouts = make([3, 1], [[4, 1, 2], [3, 5, 2]], limit=6)
    chosen = np.array([[0, 2], [2, 1]], np.int32)
    batch = train_batch(prompts, rollouts, chosen)
    pad = [0] * 16
    rows = [
        ([0, 1, 2], [50, 51, 52, 53]),
        ([0, 1, 2], [250, 251]),
        ([100], [1250, 1251]),
        ([100], [1150, 1151, 1152, 1153, 1154]),
    ]
    assert batch.ids.tolist() == [(prompt + response + pad)[:16] for prompt, response in rows]
    assert batch.responses.tolist() == [(response + pad)[:16] for _, response in rows]
    assert batch.prompt_lengths.tolist() == [3, 3, 1, 1]
    assert batch.mask.tolist() == [([1.0] * len(response) + pad)[:16] for _, response in rows]
    np.testing.assert_allclose(batch.sampler_logps, -batch.responses / 10, rtol=1e-6)
    dtypes = {name: getattr(batch, name).dtype.name for name in vars(batch)}
    assert dtypes.pop("mask") == dtypes.pop("sampler_logps") == "float32"
    assert set(dtypes.values()) == {"int32"}


def test_widths_follow_the_longest_chosen_sample_only():
    prompts, rollouts = make([20, 30], [[40, 3], [50, 17]], limit=64)
    both = train_batch(prompts, rollouts, np.array([[0, 1], [0, 1]]))
    assert both.responses.shape == both.mask.shape == both.sampler_logps.shape == (4, 64)
    assert both.ids.shape == (4, 96)
    assert both.mask.sum(1).tolist() == [40, 3, 50, 17]
    short = train_batch(prompts, rollouts, np.array([[1], [1]]))
    assert short.responses.shape == (2, 24) and short.ids.shape == (2, 48)
    np.testing.assert_array_equal(short.ids[1, 30:47], both.ids[3, 30:47])


def test_a_limit_between_two_buckets_is_padded_up():
    """Responses of 17 tokens from arrays of 20 places go into rows of 24."""
    prompts, rollouts = make([2], [[17]], limit=20)
    batch = train_batch(prompts, rollouts, np.array([[0]]))
    assert batch.responses.shape == (1, 24)
    assert batch.responses[0, :17].tolist() == list(range(50, 67)) and not batch.responses[0, 17:].any()


@pytest.mark.parametrize(
    ("length", "padded"),
    [(0, 16), (16, 16), (17, 24), (24, 24), (25, 32), (33, 48), (49, 64), (65, 96), (97, 128), (3072, 3072)],
)
def test_ladder_of_lengths(length, padded):
    assert padded_length(length) == padded


@pytest.mark.parametrize(("length", "padded"), [(2_000, 2_048), (3_072, 3_072), (3_073, 3_584), (3_584, 3_584)])
def test_no_row_is_padded_far_beyond_the_longest(length, padded):
    """AIME's prompts of 512 tokens and responses of 3,072."""
    assert padded_length(length, 3_584) == padded
