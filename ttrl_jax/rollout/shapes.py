"""For which shapes a sampler's programs are compiled. Arithmetic of the host."""

import dataclasses
from dataclasses import dataclass

from ttrl_jax.records import VECTOR, padded_length
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.slots import SHARING, SMALLEST, Layout

FIRST_CACHE = 64  # tokens; the cache grows as the responses do, and shrinks, so that short ones never pay for long ones

# Of FewShapes: by which part of the slots is decoded, and for it the sizes of the cache, in shares of max_tokens. Where
# every response reaches the limit, quarters read a quarter more than there is, and the many sizes of Shapes a fifth.
# tests/test_few_programs.py says what is read in other tasks; other ladders of six were tried, and are no better there.
LADDER = ((1, (1 / 4, 1 / 2, 3 / 4, 1)), (4, (1,)), (16, (1,)))


@dataclass(frozen=True)
class Shapes:
    """Those that suit each batch best: many, for devices that take a second to compile one, as CPUs."""

    rows: int  # slots, the most samples decoded at once
    max_tokens: int  # of a response
    prefill_tokens: int  # of prompts, padding included, that each device computes at once; a longer one goes alone
    prompt_multiple: int  # of which the groups of slots, and the prompts of a prefill, are multiples: the mesh's data
    vote_multiple: int  # of which the slots of a group are: the mesh's fsdp

    def prompts_at_once(self, *, prompts: int, votes: int) -> int:
        """How many prompts' samples are decoded together."""
        return places.prompts_at_once(prompts=prompts, votes=votes, rows=self.rows)

    def layouts(self, *, prompts: int, votes: int) -> list[Layout]:
        """Of the slots: the one to start with, and smaller ones for the tail."""
        return places.layouts(
            prompts=prompts,
            votes=votes,
            rows=self.rows,
            prompt_multiple=self.prompt_multiple,
            vote_multiple=self.vote_multiple,
        )

    def sizes(self, layout: Layout) -> list[int]:
        """Of the cache of such slots, in tokens of a response, ascending to max_tokens."""
        found = [min(padded_length(FIRST_CACHE), self.max_tokens)]
        while found[-1] < self.max_tokens:
            found.append(min(padded_length(found[-1] + 1), self.max_tokens))
        return found

    def prompt_tokens(self, longest: int) -> int:
        """What prompts of up to `longest` tokens are padded to."""
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
    """Those that a whole run does with, evaluations included, for devices that take long to compile one: GPUs and TPUs.

    Six decode programs at most, see LADDER.
    """

    longest_prompt: int  # tokens; a prompt that is longer needs programs of its own
    prompts: int  # of a training step
    most_votes: int  # responses to a prompt, the most in any batch

    @property
    def whole(self) -> Layout:
        """All slots, in groups as small as sharing a prompt's cache allows: so few are idle."""
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
        """Sizes of the cache of each layout."""
        found, slots = {}, max(2, self.vote_multiple)
        for part, shares in LADDER:
            layout = self.whole
            if part > 1:
                groups = self.whole.size // part // (slots * self.prompt_multiple) * self.prompt_multiple
                layout = Layout(groups, slots)
            if part == 1 or layout.size >= SMALLEST:
                sizes = {min(-(-int(self.max_tokens * share) // VECTOR) * VECTOR, self.max_tokens) for share in shares}
                found[layout] = sorted(sizes)
        return found


def few(shapes: Shapes, *, longest_prompt: int, prompts: int, most_votes: int) -> FewShapes:
    """The same limits, with few shapes. The arguments are those of FewShapes."""
    return FewShapes(
        **dataclasses.asdict(shapes), longest_prompt=longest_prompt, prompts=prompts, most_votes=most_votes
    )
