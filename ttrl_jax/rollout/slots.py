"""Which sample is decoded where: slots in groups, the slots of a group sharing one prompt. Arithmetic of the host."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

SMALLEST = 8  # slots: fewer are hardly faster to decode
SHARING = 4  # slots of a group, at least, where there are votes for them: they read the prompt's cache once

IDLE = -1  # in place of a vote


@dataclass(frozen=True)
class Layout:
    """Shape of the slots [G, S]."""

    groups: int
    slots: int  # of each group

    @property
    def size(self) -> int:
        return self.groups * self.slots


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Samples in the making, and those that wait for a slot of their group. A slot's last token is not yet cached."""

    prompts: Any  # int32 [G], the prompt of each group; groups may have the same
    votes: Any  # int32 [G, S], the sample in each slot, or IDLE
    tokens: Any  # int32 [G, S], its last token
    lengths: Any  # int32 [G, S], its tokens that are cached
    queue: Any  # int32 [G, V], the votes that wait, in order
    firsts: Any  # int32 [G, V], the first token of each
    waiting: Any  # int32 [G], how many in the queue
    taken: Any  # int32 [G], how many of them have got a slot


@dataclass(frozen=True)
class Running:
    """A sample that has a slot."""

    vote: int
    token: int
    length: int
    slot: int  # number of the slot, counted through all groups


def prompts_at_once(*, prompts: int, votes: int, rows: int) -> int:
    """How many prompts' samples are decoded together: with few slots not all of them."""
    return max(1, min(prompts, rows // min(votes, SHARING)))


def layouts(*, prompts: int, votes: int, rows: int, prompt_multiple: int, vote_multiple: int) -> list[Layout]:
    """The layout to start with, and smaller and smaller ones for the tail.

    The first has a group for each prompt and at most `rows` slots (but one of each shard). The others have at most
    half of the slots of the one before, in groups so small that few slots stay idle however the samples are spread
    over the prompts. Groups are a multiple of prompt_multiple, slots of vote_multiple. Of four slots or more neither
    is 1: XLA leaves out axes of size 1, and then copies the cache at every step on CPUs.
    """
    groups = -(-prompts // prompt_multiple) * prompt_multiple
    if groups == 1 and min(votes, rows) >= 4 * vote_multiple:
        groups = 2
    slots = min(-(-prompts * votes // groups), rows // groups)
    first = Layout(groups, max(1, -(-slots // vote_multiple)) * vote_multiple)
    while first.size > rows and first.slots > vote_multiple:
        first = Layout(groups, first.slots - vote_multiple)
    found, unit = [first], prompt_multiple * vote_multiple
    while (size := found[-1].size // 2) >= max(SMALLEST, unit):
        slots = max(2, vote_multiple)
        while 2 * slots * 4 * prompts <= size:
            slots *= 2
        found.append(Layout(size // (slots * prompt_multiple) * prompt_multiple, slots))
    return found


def running(slots: Slots, prompts: int) -> list[list[Running]]:
    """The samples of each prompt that have a slot. `slots` of host arrays."""
    found = [[] for _ in range(prompts)]
    for group, slot in np.argwhere(slots.votes != IDLE):
        at = group, slot
        number = int(group * slots.votes.shape[1] + slot)
        found[slots.prompts[group]].append(
            Running(int(slots.votes[at]), int(slots.tokens[at]), int(slots.lengths[at]), number)
        )
    return found


def queued(slots: Slots, prompts: int) -> list[list[int]]:
    """The votes of each prompt that wait in the queue of a group."""
    found = [[] for _ in range(prompts)]
    for group, prompt in enumerate(slots.prompts):
        found[prompt] += slots.queue[group, slots.taken[group] : slots.waiting[group]].tolist()
    return found


def without(slots: Slots, dropped: np.ndarray) -> tuple[Slots, list[list[int]]]:
    """Drop samples that run or wait; dropped: bool [P, V].

    Returns the slots without them, and for each prompt that loses some the others of its queues, which have to wait
    elsewhere: in a slot that is free no sample ends, to be followed by the next. `slots` of host arrays.
    """
    gone = (slots.votes != IDLE) & dropped[slots.prompts[:, None], slots.votes]
    freed = dropped.any(1)[slots.prompts]
    left = queued(dataclasses.replace(slots, waiting=np.where(freed, slots.waiting, 0)), len(dropped))
    waiting, taken = np.where(freed, 0, slots.waiting), np.where(freed, 0, slots.taken)
    free = dict(votes=np.where(gone, IDLE, slots.votes), waiting=waiting.astype(np.int32), taken=taken.astype(np.int32))
    free |= {name: np.where(gone, 0, vars(slots)[name]).astype(np.int32) for name in ("tokens", "lengths")}
    found = dataclasses.replace(slots, **free)
    return found, [[v for v in votes if not dropped[p, v]] for p, votes in enumerate(left)]


def fits(layout: Layout, active: Sequence[Sequence[Running]]) -> bool:
    """Whether the running samples have room in the layout."""
    return sum(-(-len(samples) // layout.slots) for samples in active) <= layout.groups


def arrange(
    layout: Layout,
    active: Sequence[Sequence[Running]],
    waiting: Sequence[Sequence[int]],
    first: np.ndarray,
    *,
    room: int,
) -> tuple[Slots, np.ndarray, list[list[int]]]:
    """Give the running samples slots of `layout`, and the free slots and queues to the waiting ones.

    active and waiting: for each of P prompts; the running samples must fit. first int32 [P, V]: first token of each
    sample. room: for how many votes the queues are made, V or more. Returns the slots (host arrays); from which former
    slot each comes, int32 [G, S] (0 where from none); and for each prompt the votes that wait because it has no group.
    """
    size = layout.slots
    share = np.array([-(-len(samples) // size) for samples in active])
    wanted = np.array([len(samples) + len(votes) for samples, votes in zip(active, waiting, strict=True)])
    for _ in range(layout.groups - int(share.sum())):  # to where a slot has the most to do
        load = np.where(wanted > share * size, wanted / np.maximum(share * size, 0.5), 0)
        if not load.any():
            break
        share[load.argmax()] += 1
    shape = (layout.groups, size)
    slots = Slots(
        prompts=np.zeros(layout.groups, np.int32),
        votes=np.full(shape, IDLE, np.int32),
        tokens=np.zeros(shape, np.int32),
        lengths=np.zeros(shape, np.int32),
        queue=np.zeros((layout.groups, room), np.int32),
        firsts=np.zeros((layout.groups, room), np.int32),
        waiting=np.zeros(layout.groups, np.int32),
        taken=np.zeros(layout.groups, np.int32),
    )
    source = np.zeros(shape, np.int32)
    left, start = [list(votes) for votes in waiting], 0
    for prompt, count in enumerate(share):
        if count == 0:
            continue
        groups = range(start, start + count)
        start += count
        slots.prompts[groups] = prompt
        new = [Running(vote, int(first[prompt, vote]), 0, 0) for vote in left[prompt]]
        left[prompt] = []
        for i, sample in enumerate([*active[prompt], *new]):
            group, place = groups[i % count], i // count  # in turn, so that all its groups have as much to do
            if place < size:
                at = group, place
                slots.votes[at], slots.tokens[at], slots.lengths[at] = sample.vote, sample.token, sample.length
                source[at] = sample.slot
            else:
                slots.queue[group, slots.waiting[group]] = sample.vote
                slots.firsts[group, slots.waiting[group]] = sample.token
                slots.waiting[group] += 1
    return slots, source, left
