"""Hand-worked and invariance: which sample is decoded where."""

import numpy as np
import pytest

from ttrl_jax.rollout.slots import IDLE, Layout, Running, arrange, fits, layouts, prompts_at_once, queued, running


def shapes(**values):
    settings = dict(prompts=8, votes=64, rows=512, prompt_multiple=1, vote_multiple=1)
    return [(layout.groups, layout.slots) for layout in layouts(**settings | values)]


def test_layouts_by_hand():
    """A group for each prompt, then halves, of which a quarter suffices to give each prompt a group of its own."""
    assert shapes() == [(8, 64), (32, 8), (32, 4), (32, 2), (16, 2), (8, 2), (4, 2)]
    assert shapes(rows=100) == [(8, 12), (24, 2), (12, 2), (6, 2)]
    assert shapes(prompts=1) == [(2, 32), (4, 8), (4, 4), (4, 2)]  # no axis of size 1
    assert shapes(rows=3, prompts=1) == [(1, 3)]
    assert shapes(rows=1000, votes=5, prompts=2) == [(2, 5)]
    assert shapes(prompts=7, rows=64, prompt_multiple=2, vote_multiple=4) == [(8, 8), (8, 4), (4, 4), (2, 4)]
    assert shapes(prompts=1, rows=4, vote_multiple=8) == [(1, 8)]  # at least one slot on each shard


@pytest.mark.parametrize("multiples", [(1, 1), (2, 2), (4, 1), (1, 8)])
@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("prompts", [1, 3, 8])
def test_layouts_shrink_by_about_half_and_fit_the_mesh(prompts, rows, multiples):
    found = shapes(prompts=prompts, rows=rows, prompt_multiple=multiples[0], vote_multiple=multiples[1])
    sizes = [groups * slots for groups, slots in found]
    unit = multiples[0] * multiples[1]
    assert all(groups % multiples[0] == slots % multiples[1] == 0 for groups, slots in found)
    assert found[0][0] >= prompts and sizes[0] <= max(rows, found[0][0] * multiples[1])
    for (_, slots), half, smaller in zip(found[1:], [size // 2 for size in sizes], sizes[1:], strict=False):
        assert half - slots * multiples[0] < smaller <= half
    assert sizes[-1] // 2 < max(8, unit)
    assert rows < 4 * unit * prompts or all(1 not in layout or np.prod(layout) <= unit for layout in found)


def test_few_slots_take_few_prompts_at_once():
    assert [prompts_at_once(prompts=30, votes=8, rows=rows) for rows in (1, 7, 64, 512)] == [1, 1, 16, 30]
    assert [prompts_at_once(prompts=90, votes=votes, rows=64) for votes in (1, 2, 4, 16)] == [64, 32, 16, 16]


FIRST = np.arange(100, 140).reshape(2, 20)  # the first token of each sample


def test_arrange_by_hand():
    """Two samples of prompt 0 run, seven wait; three of prompt 1 wait: it gets one of three groups of two slots."""
    active = [[Running(vote=9, token=5, length=3, slot=4), Running(vote=2, token=6, length=8, slot=1)], []]
    slots, source, left = arrange(Layout(3, 2), active, [[0, 1, 3, 4, 5, 6, 7], [11, 12, 13]], FIRST, room=20)
    assert slots.prompts.tolist() == [0, 0, 1]
    assert slots.votes.tolist() == [[9, 0], [2, 1], [11, 12]]
    assert slots.tokens.tolist() == [[5, 100], [6, 101], [131, 132]]
    assert slots.lengths.tolist() == [[3, 0], [8, 0], [0, 0]]
    assert source[:2, 0].tolist() == [4, 1]
    assert [row[:n].tolist() for row, n in zip(slots.queue, slots.waiting, strict=True)] == [[3, 5, 7], [4, 6], [13]]
    assert left == [[], []] and slots.taken.tolist() == [0, 0, 0]
    assert queued(slots, 2) == [[3, 5, 7, 4, 6], [13]]
    slots.taken[0] = 2
    assert queued(slots, 2) == [[7, 4, 6], [13]]


def test_a_prompt_without_a_group_waits():
    active = [[Running(0, 1, 1, 0), Running(1, 1, 1, 1)], []]
    slots, _, left = arrange(Layout(2, 1), active, [[2], [3, 4]], FIRST, room=20)
    assert slots.prompts.tolist() == [0, 0] and slots.votes.tolist() == [[0], [1]]
    assert left == [[], [3, 4]]
    slots, _, left = arrange(Layout(3, 1), active, [[], []], FIRST, room=20)
    assert slots.votes.tolist() == [[0], [1], [IDLE]] and left == [[], []]


def test_every_sample_is_somewhere_and_its_cache_is_found_again():
    rng, shape = np.random.default_rng(0), Layout(6, 4)
    for _ in range(30):
        votes = [rng.permutation(20).tolist() for _ in range(2)]
        counts = rng.integers(0, 13, 2)
        numbers = iter(rng.permutation(60))
        active = [
            [Running(vote, int(rng.integers(99)), int(rng.integers(1, 9)), int(next(numbers))) for vote in own[:n]]
            for own, n in zip(votes, counts, strict=True)
        ]
        waiting = [own[n : n + rng.integers(0, 9)] for own, n in zip(votes, counts, strict=True)]
        assert fits(shape, active)
        slots, source, left = arrange(shape, active, waiting, FIRST, room=20)
        found = running(slots, 2)
        for prompt in range(2):
            cached = {sample.vote: sample for sample in found[prompt] if sample.length}
            assert {vote: (s.token, s.length, source.flat[s.slot]) for vote, s in cached.items()} == {
                s.vote: (s.token, s.length, s.slot) for s in active[prompt]
            }
            new = [sample.vote for sample in found[prompt] if not sample.length]
            assert sorted(new + queued(slots, 2)[prompt] + left[prompt]) == sorted(waiting[prompt])
            assert all(s.token == FIRST[prompt, s.vote] for s in found[prompt] if not s.length)
        idle = (slots.votes == IDLE).any(1)
        assert not (idle & (slots.waiting > 0)).any()  # nothing waits where a slot is free
    assert not fits(Layout(2, 4), [[Running(0, 0, 0, 0)] * 5, [Running(0, 0, 0, 0)]])
