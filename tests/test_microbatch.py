"""Hand-worked: which rows go together, and where each response token stands. Invariance: nothing is lost."""

import math

import jax
import numpy as np
import pytest

from ttrl_jax.learn import microbatch
from ttrl_jax.learn.microbatch import Kinds, _packed, few_shapes, micro_batches, zeros
from ttrl_jax.model.shapes import even_length, named
from ttrl_jax.records import TrainBatch


def make(prompt_lengths, lengths):
    """Row r has the tokens 100 r, 100 r + 1 ...; its log-probs are those of its tokens."""
    prompt_lengths, lengths = np.array(prompt_lengths, np.int32), np.array(lengths)
    row = np.arange(len(lengths))[:, None]
    at = np.arange((prompt_lengths + lengths).max())
    ids = np.where(at < (prompt_lengths + lengths)[:, None], 100 * row + at, 0).astype(np.int32)
    places = np.arange(lengths.max())
    mask = places < lengths[:, None]
    responses = np.where(mask, 100 * row + prompt_lengths[:, None] + places, 0).astype(np.int32)
    logps = np.float32(-responses / 10)
    return TrainBatch(ids, prompt_lengths, responses, np.float32(mask), logps)


@pytest.fixture
def whole_rows(monkeypatch):
    """Nothing is packed."""
    monkeypatch.setattr(microbatch, "WORTH_PACKING", 0)


def test_two_shards_by_hand(whole_rows):
    """Rows of 5, 4 and 3 tokens, dealt out in turn; the fourth place is padding."""
    batch = make([2, 1, 2], [2, 2, 3])
    [micro] = micro_batches(batch, np.arange(len(batch.mask)), shards=2, tokens=32, chunk=3, full=3, longest=5)
    rows = [[200, 201, 202, 203, 204], [100, 101, 102], [0, 1, 2, 3], []]
    assert micro.ids.tolist() == [row + [0] * (16 - len(row)) for row in rows]
    assert micro.chunks == 2 and micro.states.shape == (2, 11, 3)
    # The state before response token 202 is that of 201, the second of its shard; row 1 begins at its shard's 17th.
    assert micro.tokens[:, :2].tolist() == [[[202, 203, 204], [101, 102, 0]], [[2, 3, 0], [0, 0, 0]]]
    assert micro.states[:, :2].tolist() == [[[1, 2, 3], [16, 17, 0]], [[1, 2, 0], [0, 0, 0]]]
    assert micro.mask[:, :2].tolist() == [[[1, 1, 1], [1, 1, 0]], [[1, 1, 0], [0, 0, 0]]]
    # Row 2 has the places 6, 7 and 8 of 3 x 3, row 1 the places 3 and 4; 9 is none.
    assert micro.places[:, :2].tolist() == [[[6, 7, 8], [3, 4, 9]], [[0, 1, 9], [9, 9, 9]]]
    assert (micro.places[:, 2:] == 9).all()
    np.testing.assert_allclose(micro.take(batch.sampler_logps), -micro.tokens / 10, rtol=1e-6)
    advantages = np.arange(3, dtype=np.float32)[:, None] * batch.mask
    assert micro.take(advantages)[:, :2].tolist() == [[[2, 2, 2], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert not micro.mask[:, 2:].any()
    assert micro.packing is None
    dtypes = {name: x.dtype.name for name, x in vars(micro).items() if name != "packing"}
    assert {name for name, dtype in dtypes.items() if dtype == "float32"} == {"mask"}
    assert set(dtypes.values()) == {"float32", "int32"}


def shapes(lengths, longest=400, **settings):
    """Row shapes of the micro-batches of rows with prompts of 4 tokens."""
    batch = make([4] * len(lengths), np.array(lengths) - 4)
    found = micro_batches(batch, np.arange(len(batch.mask)), chunk=8, longest=longest, **settings)
    return [micro.ids.shape for micro in found]


@pytest.mark.parametrize(
    ("lengths", "settings", "want"),
    [
        # Equal rows: all at once, or in even pieces, not 40 + 40 + 40 + 8.
        ([20] * 128, dict(shards=1, tokens=10_000, full=128), [(128, 24)]),
        ([20] * 128, dict(shards=1, tokens=40 * 24, full=128), [(32, 24)] * 4),
        ([20] * 128, dict(shards=4, tokens=10 * 24, full=128), [(32, 24)] * 4),
        # A long tail: about as many tokens in each, the longest alone though it has more.
        (
            [300, 100, 90] + [30] * 12 + [10] * 13,
            dict(shards=1, tokens=256, full=28),
            [(1, 384), (2, 128), (7, 32), (7, 32), (14, 16)],
        ),
        # Rows left out of a minibatch of 128: the last piece is a quarter, a half or the whole of the others.
        ([20] * 33, dict(shards=1, tokens=32 * 24, full=128), [(32, 24), (8, 24)]),
        ([20] * 9, dict(shards=1, tokens=32 * 24, full=128), [(16, 24)]),
        ([20] * 17, dict(shards=1, tokens=32 * 24, full=128), [(32, 24)]),
        ([20], dict(shards=8, tokens=32 * 24, full=128), [(32, 24)]),
        # No row can have more than 520 tokens: not 768 places but 640, the next multiple of 128.
        ([520, 500], dict(shards=1, tokens=2_000, full=2, longest=520), [(2, 640)]),
        ([520, 40], dict(shards=1, tokens=640, full=2, longest=520), [(1, 640), (1, 48)]),
    ],
)
def test_which_rows_go_together(lengths, settings, want, whole_rows):
    assert shapes(lengths, **settings) == want


def test_no_rows_are_no_micro_batches():
    assert micro_batches(make([4], [4]), np.arange(0), shards=2, tokens=256, chunk=8, full=8, longest=8) == []


def test_packed_by_hand():
    """Rows 1 and 2 have the same prompt, which the first shard computes once; row 0 has another shard to itself. What
    comes after a response's last token is never asked for, so that token is not computed."""
    batch = make([2, 2, 2], [2, 4, 3])
    batch.ids[1, :2] = batch.ids[2, :2] = [8, 9]
    rows = np.array([[1, 2], [0, -1]])
    ids, packing, used = _packed(batch, rows, 16, 8)
    assert used == 7
    assert ids.tolist() == [[8, 9, 102, 103, 104, 202, 203, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert packing.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert packing.prompts.tolist() == [[2, 2], [2, 0]] and packing.owners.tolist() == [[0, 0], [0, 0]]
    assert packing.rows[0, :, :5].tolist() == [[0, 1, 2, 3, 4], [0, 1, 5, 6, 0]]
    assert packing.rows[1, 0, :3].tolist() == [0, 1, 2] and not packing.rows[1, 1].any()
    assert packing.places.tolist() == [[0, 1, 2, 3, 4, 18, 19, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert {x.dtype.name for x in (ids, *vars(packing).values())} == {"int32"}


def test_rows_without_much_in_common_are_not_packed():
    """13 of 16 tokens are computed in either way (the last is not): more than three quarters."""
    batch, sizes = make([7, 7], [7, 7]), dict(shards=1, tokens=32, chunk=8, full=2, longest=16)
    [micro] = micro_batches(batch, np.arange(2), **sizes)
    assert micro.packing is None
    batch.ids[1, :7] = batch.ids[0, :7]
    [micro] = micro_batches(batch, np.arange(2), **sizes)
    assert micro.packing.places.shape == micro.ids.shape == (1, 20)  # 7 + 6 + 6 tokens, to a sixteenth of 32


def test_few_shapes_by_hand():
    """Rows of up to 3,584 tokens, two of them in a pass of 8,192, or of up to 1,792. One that is longer goes alone."""
    even = even_length(named("Qwen/Qwen2.5-1.5B"))
    assert round(even) == 30467
    assert few_shapes(tokens=8192, rows=32, longest=3584, even=even) == Kinds(7168, ((4, 3584), (12, 1792)))
    assert few_shapes(tokens=8192, rows=1, longest=3584, even=even) == Kinds(3584, ((2, 3584), (6, 1792)))
    assert few_shapes(tokens=1000, rows=32, longest=100, even=even) == Kinds(896, ((14, 128),))
    # Where attention is a good part of the cost it computes few empty rows, in three shapes.
    dear = Kinds(33280, ((1, 33280), (4, 16640), (8, 8320)))
    assert few_shapes(tokens=8192, rows=32, longest=33280, even=even) == dear
    assert len(few_shapes(tokens=8192, rows=32, longest=7168, even=even).rows) == 2
    assert few_shapes(tokens=8192, rows=32, longest=200, even=300) == Kinds(8192, ((32, 256), (128, 128)))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("even", [math.inf, 1000])
def test_few_shapes_hold_every_token_once(even, shards):
    """Semantics: 40 rows of 4 prompts; each response token is asked for once, and of the state before it."""
    rng = np.random.default_rng(0)
    batch = make(np.repeat([9, 3, 30, 1], 10), np.minimum(1 + rng.exponential(60, size=40).astype(int), 300))
    for first in range(0, 40, 10):
        length = batch.prompt_lengths[first]
        batch.ids[first : first + 10, :length] = batch.ids[first, :length]
    sizes = dict(shards=shards, tokens=512, chunk=100, full=40, longest=330)
    kinds = few_shapes(tokens=512, rows=-(-40 // shards), longest=330, even=even)
    found = micro_batches(batch, np.arange(40), **sizes, kinds=kinds)
    size = kinds.tokens
    assert {micro.ids.shape for micro in found} == {(shards, size)} and len(found) > 1
    assert {micro.packing.rows.shape[1:] for micro in found} <= set(kinds.rows)
    assert len({jax.tree.map(np.shape, micro).__repr__() for micro in found}) <= len(kinds.rows)
    taken = np.concatenate([micro.places[micro.mask > 0] for micro in found])
    assert sorted(taken) == np.flatnonzero(batch.mask).tolist()
    for micro in found:
        states = micro.states.reshape(shards, -1)
        before = np.take_along_axis(micro.ids, states, 1).reshape(micro.tokens.shape)
        row, at = np.divmod(micro.places, batch.mask.shape[1])
        real = micro.mask > 0
        want = batch.ids[row[real], batch.prompt_lengths[row[real]] - 1 + at[real]]
        np.testing.assert_array_equal(before[real], want)
        there = np.take_along_axis(micro.packing.rows.reshape(shards, -1), micro.packing.places, 1)
        assert (there == np.arange(size))[micro.ids > 0].all()


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_every_token_is_in_one_place(shards, whole_rows):
    rng = np.random.default_rng(0)
    batch = make(rng.integers(1, 9, size=40), np.minimum(1 + rng.exponential(12, size=40).astype(int), 60))
    found = micro_batches(batch, np.arange(len(batch.mask)), shards=shards, tokens=96, chunk=7, full=40, longest=70)
    assert len(found) > 1
    tokens = np.concatenate([micro.tokens[micro.mask > 0] for micro in found])
    assert sorted(tokens) == sorted(batch.responses[batch.mask > 0])
    for micro in found:
        states = jax.tree.map(lambda x: x.reshape(shards, -1), (micro.states, micro.tokens, micro.mask > 0))
        for ids, state, token, real in zip(micro.ids.reshape(shards, -1), *states, strict=True):
            assert (ids[state[real]] == token[real] - 1).all()  # the token before
        assert not micro.mask[:, micro.chunks :].any() and micro.mask[:, micro.chunks - 1].any()


@pytest.mark.parametrize("shards", [1, 8])
def test_what_is_taken_apart_is_put_together(shards, whole_rows):
    """Semantics: on the devices as on the host; rows left out, and places without a token, stay as they were."""
    rng = np.random.default_rng(1)
    batch = make(rng.integers(1, 9, size=20), np.minimum(1 + rng.exponential(6, size=20).astype(int), 30))
    numbers, rows = rng.normal(size=batch.mask.shape).astype(np.float32), np.array([17, 3, 4, 11, 0, 9])
    found = micro_batches(batch, rows, shards=shards, tokens=32, chunk=7, full=20, longest=40)
    assert len(found) == (4 if shards == 1 else 1)
    together = zeros(batch.mask.shape)
    for micro in found:
        own = micro.take(numbers)
        assert own.dtype == np.float32 and own.shape == micro.tokens.shape and not own[micro.mask == 0].any()
        np.testing.assert_array_equal(micro.take(jax.numpy.asarray(numbers)), own)
        together = micro.put(together, jax.numpy.where(micro.mask > 0, own, 5.0))
    kept = np.isin(np.arange(20), rows)[:, None] & (batch.mask > 0)
    np.testing.assert_array_equal(together, np.where(kept, numbers, 0))
