"""Decide, on the host, for which shapes the programs of a sampler are compiled."""

import dataclasses
from dataclasses import dataclass

from ttrl_jax.records import VECTOR, padded_length
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.slots import SHARING, SMALLEST, Layout

FIRST_CACHE = 64  # tokens; the cache grows as the responses do, and shrinks, so that short ones never pay for long ones

# The programs of FewShapes where the cache is read by blocks, of which it has one size: numbers of slots, all of them
# and parts of them. They read what the many programs of Shapes do (tests/test_few_programs.py); two more save 6 %.
BLOCK = 256  # places
PARTS = (1, 1.5, 2.5, 6)

# Where it is read whole: by which number the slots are divided, and the sizes of the cache for them, as shares of
# max_tokens. If every response reaches the limit, quarters read a quarter more than is there, and the many sizes of
# Shapes a fifth more. Other ladders of six programs were tried, and are no better.
LADDER = ((1, (1 / 4, 1 / 2, 3 / 4, 1)), (4, (1,)), (16, (1,)))


@dataclass(frozen=True)
class Shapes:
    """The shapes that suit each batch best. There are many; they are for CPUs, which compile a program in a second."""

    rows: int  # slots, the most samples decoded at once
    max_tokens: int  # of a response
    prefill_tokens: int  # of prompts, padding included, that each device computes at once; a longer one goes alone
    prompt_multiple: int  # of which the groups of slots, and the prompts of a prefill, are multiples: the mesh's data
    vote_multiple: int  # of which the slots of a group are: the mesh's fsdp

    @property
    def block(self) -> int | None:
        """Places of the cache that are read at once; None: it is read whole."""
        return None

    def prompts_at_once(self, *, prompts: int, votes: int) -> int:
        """How many prompts' samples are decoded together."""
        return places.prompts_at_once(prompts=prompts, votes=votes, rows=self.rows)

    def layouts(self, *, prompts: int, votes: int) -> list[Layout]:
        """The layouts of the slots: the first to start with, and smaller ones for when few samples are left."""
        return places.layouts(
            prompts=prompts,
            votes=votes,
            rows=self.rows,
            prompt_multiple=self.prompt_multiple,
            vote_multiple=self.vote_multiple,
        )

    def sizes(self, layout: Layout) -> list[int]:
        """The sizes of the cache of such slots, in tokens of a response, ascending to max_tokens."""
        found = [min(padded_length(FIRST_CACHE), self.max_tokens)]
        while found[-1] < self.max_tokens:
            found.append(min(padded_length(found[-1] + 1), self.max_tokens))
        return found

    def prompt_tokens(self, longest: int) -> int:
        """The length to which prompts of up to `longest` tokens are padded."""
        return padded_length(longest)

    def prefill_prompts(self, *, prompts: int, tokens: int) -> int:
        """How many of `prompts` prompts, padded to `tokens` tokens, are computed at once."""
        most = self.prompt_multiple * max(1, self.prefill_tokens // tokens)
        return min(most, -(-prompts // self.prompt_multiple) * self.prompt_multiple)

    def votes(self, votes: int) -> int:
        """For how many responses to a prompt there is room, where `votes` are drawn."""
        return votes


@dataclass(frozen=True)
class FewShapes(Shapes):
    """The few shapes that a whole run needs, with its evaluations. They are for GPUs and TPUs, which take long to
    compile a program. There are at most six decode programs (PARTS, LADDER)."""

    longest_prompt: int  # tokens; a prompt that is longer needs programs of its own
    prompts: int  # of a training step
    most_votes: int  # responses to a prompt, the most in any batch
    by_blocks: bool  # read the cache block by block: where it costs nothing, on TPUs and by a kernel on GPUs

    @property
    def block(self) -> int | None:
        return BLOCK if self.by_blocks else None

    @property
    def whole(self) -> Layout:
        """The layout of all slots. Groups are as small as sharing the cache of a prompt allows, so that few slots are
        idle."""
        slots = -(-min(SHARING, max(1, self.rows // self.prompt_multiple)) // self.vote_multiple) * self.vote_multiple
        return Layout(max(1, self.rows // (slots * self.prompt_multiple)) * self.prompt_multiple, slots)

    def layouts(self, *, prompts: int, votes: int) -> list[Layout]:
        return list(self._ladder())

    def prompts_at_once(self, *, prompts: int, votes: int) -> int:
        return min(prompts, self.whole.groups)

    def sizes(self, layout: Layout) -> list[int]:
        return self._ladder()[layout]

    def prompt_tokens(self, longest: int) -> int:
        return padded_length(max(longest, self.longest_prompt))

    def prefill_prompts(self, *, prompts: int, tokens: int) -> int:
        return super().prefill_prompts(prompts=self.prompts, tokens=tokens)

    def votes(self, votes: int) -> int:
        return max(votes, self.most_votes)

    def _ladder(self) -> dict[Layout, list[int]]:
        """The sizes of the cache for each layout."""
        places, slots = self.max_tokens, max(2, self.vote_multiple)
        unit = BLOCK if self.by_blocks else VECTOR
        ladder = [(part, (1,)) for part in PARTS] if self.by_blocks else LADDER
        found = {}
        for part, shares in ladder:
            layout = self.whole
            if part > 1:
                groups = int(self.whole.size / part) // (slots * self.prompt_multiple) * self.prompt_multiple
                layout = Layout(groups, slots)
            if part == 1 or layout.size >= SMALLEST:
                sizes = {-(-int(places * share) // unit) * unit for share in shares}
                found[layout] = sorted(sizes if self.by_blocks else {min(size, places) for size in sizes})
        return found


def few(shapes: Shapes, *, longest_prompt: int, prompts: int, most_votes: int, by_blocks: bool) -> FewShapes:
    """FewShapes with the limits of `shapes`. The other arguments are those of FewShapes."""
    return FewShapes(
        **dataclasses.asdict(shapes),
        longest_prompt=longest_prompt,
        prompts=prompts,
        most_votes=most_votes,
        by_blocks=by_blocks,
    )
