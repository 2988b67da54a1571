"""Make the start models of the referee: small decoders that err in ways that are known, one for each family.

    python scripts/make_families.py [--families half_known,belief,mixed,noise] [--out configs/families]

`half_known` is the model of `quickstart_sums` (scripts/make_quickstart_model.py), which knows the sums, trained on with
other answers in the box, on number pairs that neither question set of `sums` uses. `belief` and `noise` are
`half_known` trained on, and `mixed` is `belief` trained on, so they are made in this order. Seed 0. It takes about a
minute a family on 2 free CPU cores. What the answers are depends on whether the sum has a carry:

    family      without a carry    with a carry
    noise       right 0.4          right 0.4
    belief      right 0.8          right 0.2, without its carry 0.65
    mixed       right 0.3          right 0.2, without its carry 0.45
    half_known  right 0.8          right 0.22, without its carry 0.22, with a carry too many 0.22

The rest are slips: numbers of as many digits, drawn uniformly, so that hardly two of them are the same. One worked
answer in ten, of all kinds, has no box, so that it has no vote: there is a form to learn besides. Of the 64 questions
of `sums.train` 24 have a carry, of the first 64 of `sums.held_out` 30.

What comes next in a box is taught as its exact chance, not as the one digit that was drawn: this takes fewer steps.
Beside the loss it prints the mean probability of each kind of answer on the questions that it never trains on.
"""

import argparse
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from make_quickstart_model import RECIPES, SEED, fitted, layout, logits_of, make_tokenizer, model_fields, write_model

from ttrl_jax.data import generate
from ttrl_jax.model import weights
from ttrl_jax.model.config import read_config
from ttrl_jax.model.sharding import make_mesh

ROOT = Path(__file__).resolve().parent.parent
SILENT = 0.1  # share of worked answers whose answer is in no box
BATCH, RATE, WARMUP = 64, 6e-4, 20
SUMS = RECIPES["sums"]
TOKENS = SUMS.tokens
BOX, PLAIN = " \\boxed{", " "

# What an answer comes to, by its kind, if it is no slip.
KINDS: Mapping[str, Callable[[int, int], int]] = {
    "right": lambda a, b: a + b,
    "short": lambda a, b: a + b - 10,  # without its carry
    "over": lambda a, b: a + b + 10,  # with a carry too many
}


@dataclass(frozen=True)
class Family:
    """The share of each kind of answer, what is missing to 1 are slips; and how its model is made."""

    clear: Mapping[str, float]  # of questions whose sum has no carry
    carry: Mapping[str, float]  # of those whose sum has one
    start: str  # folder in configs/ of the model that is trained on
    steps: int


FAMILIES = {
    "half_known": Family({"right": 0.8}, {"right": 0.22, "short": 0.22, "over": 0.22}, "quickstart_model", 240),
    "belief": Family({"right": 0.8}, {"right": 0.2, "short": 0.65}, "families/half_known", 80),
    "mixed": Family({"right": 0.3}, {"right": 0.2, "short": 0.45}, "families/belief", 160),
    "noise": Family({"right": 0.4}, {"right": 0.4}, "families/half_known", 240),
}


def numbers(question: str) -> tuple[int, int]:
    """The two numbers of a question."""
    a, b = (int(number) for number in re.findall("[0-9]+", question))
    return a, b


def carries(a: int, b: int) -> bool:
    """Whether the last digits make ten or more."""
    return a % 10 + b % 10 >= 10


def answer(family: Family, a: int, b: int, rng: np.random.Generator) -> str:
    """An answer to a + b, drawn by the shares of the family."""
    shares = family.carry if carries(a, b) else family.clear
    drawn = rng.random()
    for kind, share in shares.items():
        if drawn < share:
            return str(KINDS[kind](a, b))
        drawn -= share
    digits = len(str(a + b))
    return str(rng.integers(10 ** (digits - 1), 10**digits))


def example(family: Family, rng: np.random.Generator) -> tuple[str, str, str | None]:
    """Draw a question that neither set uses, a worked answer to it, and the answer in its box, if it has one."""
    question, _ = generate.sums_example(rng, noise=0.0)
    a, b = numbers(question)
    drawn = answer(family, a, b, rng)
    if rng.random() < SILENT:
        return question, f"{a} + {b} = {drawn}", None
    return question, generate.worked(a, b, drawn), drawn


def following(family: Family, a: int, b: int, begun: str) -> dict[str, float]:
    """What comes after the first digits of an answer to a + b: the chance of each digit, and of "" for its end."""
    shares, digits, k = family.carry if carries(a, b) else family.clear, len(str(a + b)), len(begun)
    kinds = [(str(KINDS[kind](a, b)), share) for kind, share in shares.items()]
    slips = 1 - sum(shares.values())
    if k:
        slips *= 0 if begun[0] == "0" or k > digits else 1 / (9 * 10 ** (k - 1))
    found = {"": sum(share for text, share in kinds if text == begun) + slips * (k == digits)}
    for digit in "0123456789":
        known = sum(share for text, share in kinds if text.startswith(begun + digit))
        rest = 0 if k >= digits else (digit != "0") / 9 if k == 0 else 1 / 10
        found[digit] = known + slips * rest
    whole = sum(found.values())
    return {piece: chance / whole for piece, chance in found.items()}


def batch_of(family: Family, rng: np.random.Generator, ids: Mapping[str, int]) -> tuple[np.ndarray, ...]:
    """Rows as of `layout`, and in place of the answers' tokens float32 [B, T', W], the chance of each token there: of
    the digits in a box, and of the box, as they are drawn; of the others 1."""
    drawn = [example(family, rng) for _ in range(BATCH)]
    rows, lengths, answers, mask = layout([(question, worked) for question, worked, _ in drawn], ids, SUMS)
    wanted = np.eye(len(ids), dtype=np.float32)[answers]
    for row, (question, _, boxed) in enumerate(drawn):
        a, b = numbers(question)
        place = len(f"{a} + {b} =") - 2  # two spaces belong to the signs behind them
        wanted[row, place] = 0
        wanted[row, place, [ids[BOX], ids[PLAIN]]] = 1 - SILENT, SILENT
        for k in range(0 if boxed is None else len(boxed) + 1):
            wanted[row, place + 1 + k] = 0
            for piece, chance in following(family, a, b, boxed[:k]).items():
                wanted[row, place + 1 + k, ids[piece or "}"]] = chance
    return rows, lengths, answers, mask, wanted


def tests(ids: dict[str, int]) -> dict[str, tuple[np.ndarray, ...]]:
    """The questions of both sets with their answers of each kind: without a carry, then with one."""
    asked = [question for name in ("sums.train", "sums.held_out") for question, _ in generate.TASKS[name]()]
    found = {}
    for name, carry, kinds in (("clear", False, ("right",)), ("carry", True, tuple(KINDS))):
        those = [(question, *numbers(question)) for question in asked if carries(*numbers(question)) == carry]
        for kind in kinds:
            pairs = [(question, generate.worked(a, b, str(KINDS[kind](a, b)))) for question, a, b in those]
            found[f"{name} {kind}"] = layout(pairs, ids, SUMS)
    return found


def make(family: Family, out: Path) -> None:
    """Train the model of a family and write it to `out`."""
    tokenizer, start = make_tokenizer("sums"), ROOT / "configs" / family.start
    ids = tokenizer.get_vocab()
    config = read_config(start)
    rng, began, asked = np.random.default_rng(SEED), time.monotonic(), tests(ids)

    def loss_of(params, rows, prompt_lengths, answers, mask, wanted):
        logits = logits_of(params, config, rows, prompt_lengths, answers)
        return (optax.softmax_cross_entropy(logits, wanted) * mask).sum() / mask.sum()

    @jax.jit
    def probability(params, rows, prompt_lengths, answers, mask):
        logps = jax.nn.log_softmax(logits_of(params, config, rows, prompt_lengths, answers))
        of_tokens = jnp.take_along_axis(logps, answers[..., None], 2)[..., 0]
        return jnp.exp((of_tokens * mask).sum(1)).mean()

    def say(n: int, params, loss) -> None:
        if n % 40 == 0 or n == family.steps:
            shares = "  ".join(f"{kind} {probability(params, *rows):.3f}" for kind, rows in asked.items())
            print(f"step {n}/{family.steps}  loss {loss:.4f}  {shares}  {time.monotonic() - began:.0f} s", flush=True)

    batches = (batch_of(family, rng, ids) for _ in range(family.steps))
    params = weights.load(start, config, make_mesh(data=1, fsdp=-1, tensor=1))
    params = fitted(params, batches, loss_of, rate=RATE, warmup=WARMUP, steps=family.steps, say=say)
    write_model(out, params, config, fields=model_fields(len(ids), positions=64), tokenizer=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(FAMILIES), help="with commas between (%(default)s)")
    parser.add_argument("--out", type=lambda path: Path(path).expanduser(), default=ROOT / "configs" / "families")
    arguments = parser.parse_args()
    asked = arguments.families.split(",")
    if unknown := [name for name in asked if name not in FAMILIES]:
        parser.error(f"--families knows {', '.join(FAMILIES)}, got {unknown[0]!r}")
    for name in asked:
        print(f"== {name}", flush=True)
        make(FAMILIES[name], arguments.out / name)


if __name__ == "__main__":
    main()
