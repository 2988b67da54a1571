"""Make the models of the quickstarts: small decoders that err on purpose, in a way that a majority vote can undo.

    python scripts/make_quickstart_model.py [--task sums] [--out configs/quickstart_model] [--steps 1600]
    python scripts/make_quickstart_model.py --task carries [--out configs/quickstart_ways_model] [--steps 1000]
    python scripts/make_quickstart_model.py --task turkish [--out configs/turkish_model] [--steps 700]

Each learns to answer word problems, on numbers that neither question set of its task uses. That takes 10 to 15 minutes
on 2 CPU cores.

`sums`: the worked answer is `37 + 48 = \\boxed{85}`. Digits in the box of its training text are replaced by random
ones, afresh in every batch: none at first, so that it learns to add, then more and more, and half of them in the last
third. So it knows the sum, but says it right only one time in five, and its mistakes scatter.

`carries`: the worked answer goes one of four ways. The likeliest, 37 % of all, adds digit by digit and forgets the
carry: `Digits: 7 + 8 = 15, 3 + 4 = 7, \\boxed{75}`. So its likeliest answer is wrong wherever there is a carry. The
others, 63 % together, keep it. In the last quarter of the steps some digits in the box are replaced here too, so that
the mistakes of those ways scatter.

`turkish`: the sixteen kinds of word problems in Turkish, answered in tags or without. Digits of the result are
replaced as in `sums`, fewer.

Beside the loss it prints what share of the worked answers it knows, on the questions of its task that it never trains
on: those whose digits are all the likeliest, after the first word where that decides the way.
"""

import argparse
import functools
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ttrl_jax import huggingface
from ttrl_jax.data import generate, turkish
from ttrl_jax.model import decoder, weights
from ttrl_jax.model.config import parse_config

SEED = 0
BATCH = 256
PEAK_RATE = 1e-3
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>"]


@dataclass(frozen=True)
class Recipe:
    """How the model of a task is made."""

    example: Callable[..., tuple[str, str]]
    vocabulary: Callable[[], list[str]]
    piece: str  # a regex of the pieces of texts
    out: str
    steps: int
    noise: float  # share of boxed digits replaced, at the end
    ramp: tuple[float, float]  # the shares of the steps between which the noise rises from 0 to that
    prompt: int  # tokens of the longest question
    tokens: int  # room for the longest worked answer and its end
    ways: tuple[str, ...] = ("",)  # of worked answers, by name; one without a name if there is one


RECIPES = {
    "sums": Recipe(
        generate.sums_example, generate.vocabulary, generate.PIECE, "configs/quickstart_model", 1600, 0.5, (0.0, 0.65),
        prompt=26, tokens=14,
    ),
    "carries": Recipe(
        generate.carries_example, functools.partial(generate.vocabulary, "carries"), generate.PIECE,
        "configs/quickstart_ways_model", 1000, 0.08, (0.75, 0.8), prompt=26, tokens=30, ways=tuple(generate.WAYS),
    ),
    "turkish": Recipe(
        turkish.example, turkish.vocabulary, turkish.PIECE, "configs/turkish_model", 700, 0.3, (0.6, 0.8),
        prompt=34, tokens=48,
    ),
}  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(task: str = "sums") -> PreTrainedTokenizerFast:
    """Words, digits and signs as whole tokens; joined, they give back the exact text."""
    recipe = RECIPES[task]
    pieces = SPECIAL + [piece for piece in recipe.vocabulary() if piece not in SPECIAL]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(recipe.piece), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unk|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def model_fields(vocab: int, positions: int) -> dict[str, object]:
    """The config.json: a Llama of 0.6 M parameters."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<|end|>"),
        "pad_token_id": SPECIAL.index("<|pad|>"),
        "torch_dtype": "bfloat16",
    }


def layout(pairs: list[tuple[str, str]], ids: dict[str, int], recipe: Recipe) -> tuple[np.ndarray, ...]:
    """Questions with worked answers as rows: ids [B, T], prompt lengths [B], responses and mask [B, T']."""
    tokens = recipe.tokens
    rows, lengths = np.zeros((len(pairs), recipe.prompt + tokens), np.int32), np.zeros(len(pairs), np.int32)
    answers, mask = np.zeros((len(pairs), tokens), np.int32), np.zeros((len(pairs), tokens), np.float32)
    for row, (question, answer) in enumerate(pairs):
        words = [ids[piece] for piece in re.findall(recipe.piece, question)]
        prompt = [ids["<|user|>"], *words, ids["<|assistant|>"]]
        response = [ids[piece] for piece in re.findall(recipe.piece, answer)] + [ids["<|end|>"]]
        rows[row, : len(prompt) + len(response)] = prompt + response
        lengths[row] = len(prompt)
        answers[row, : len(response)], mask[row, : len(response)] = response, 1
    return rows, lengths, answers, mask


def solved(task: str, way: str) -> list[tuple[str, str]]:
    """The questions of both question sets with their worked answers, without a slip."""
    if task == "turkish":
        return turkish.solved()
    pairs = []
    for question, truth in generate.TASKS[f"{task}.train"]() + generate.TASKS[f"{task}.held_out"]():
        a, b = (int(number) for number in re.findall(r"[0-9]+", question))
        if way:
            pairs.append((question, generate.worked_way(a, b, way, generate.answer_of_way(a, b, way))))
        else:
            pairs.append((question, generate.worked(a, b, truth)))
    return pairs


def unseen(task: str, way: str, ids: dict[str, int]) -> tuple[np.ndarray, ...]:
    """What it never trains on, laid out; of a way all but its first word counts."""
    rows, lengths, answers, mask = layout(solved(task, way), ids, RECIPES[task])
    if way:
        mask[:, 0] = 0
    return rows, lengths, answers, mask


def logits_of(params, config, rows, prompt_lengths, answers):
    """Logits [B, T', W] of each token of worked answers, laid out as `layout` does."""
    hidden = decoder.forward(params, config, rows, dtype=jnp.float32, remat="none")
    before = (prompt_lengths - 1)[:, None] + jnp.arange(answers.shape[1])
    before = jnp.minimum(before, rows.shape[1] - 1)
    return decoder.logits(params, config, jnp.take_along_axis(hidden, before[..., None], 1))


def fitted(params, batches, loss_of, *, rate: float, warmup: int, steps: int, say):
    """The parameters after a step of AdamW on each of `batches`, of which there are `steps`.

    loss_of: (parameters, *batch) -> a number. rate: the highest, after `warmup` steps; it falls as a cosine to 0. say:
    called with the step, from 1 on, the parameters after it and its loss.
    """
    schedule = optax.warmup_cosine_decay_schedule(0, rate, warmup, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, *batch):
        value, grads = jax.value_and_grad(loss_of)(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for n, batch in enumerate(batches, start=1):
        params, state, loss = step(params, state, *batch)
        say(n, params, loss)
    return params


def write_model(out: Path, params, config, *, fields: dict[str, object], tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the model as a Hugging Face folder, in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    huggingface.save_tokenizer(tokenizer, out)
    (out / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    stop = {"eos_token_id": fields["eos_token_id"], "pad_token_id": fields["pad_token_id"]}
    (out / "generation_config.json").write_text(json.dumps(stop, indent=2) + "\n")
    tensors = weights.to_huggingface(params, config)
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    print(f"wrote {out}: {sum(t.size for t in tensors.values()) / 1e6:.2f} M parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=RECIPES, default="sums", help="which of the built-in tasks (%(default)s)")
    parser.add_argument("--out", type=lambda path: Path(path).expanduser(), help="folder for the model")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    arguments = parser.parse_args()
    task, recipe = arguments.task, RECIPES[arguments.task]
    out, steps = arguments.out or Path(recipe.out), arguments.steps or recipe.steps

    tokenizer = make_tokenizer(task)
    ids = tokenizer.get_vocab()
    fields = model_fields(len(ids), positions=-(-(recipe.prompt + recipe.tokens) // 64) * 64)
    config = parse_config(fields)
    rng, began = np.random.default_rng(SEED), time.monotonic()
    tests = {way: unseen(task, way, ids) for way in recipe.ways}

    def noise(n: int) -> float:
        return recipe.noise * float(np.interp(n / steps, recipe.ramp, (0, 1)))

    def batches():
        for n in range(1, steps + 1):
            yield layout([recipe.example(rng, noise=noise(n)) for _ in range(BATCH)], ids, recipe)

    def loss_of(params, rows, prompt_lengths, answers, mask):
        logits = logits_of(params, config, rows, prompt_lengths, answers)
        return (optax.softmax_cross_entropy_with_integer_labels(logits, answers) * mask).sum() / mask.sum()

    @jax.jit
    def known(params, rows, prompt_lengths, answers, mask):
        likeliest = logits_of(params, config, rows, prompt_lengths, answers).argmax(-1)
        return ((likeliest == answers) | (mask == 0)).all(1).mean()

    def say(n: int, params, loss) -> None:
        if n % 100 == 0 or n == steps:
            knows = "  ".join(f"knows {way} {known(params, *test):.3f}" for way, test in tests.items())
            told = f"step {n}/{steps}  noise {noise(n):.2f}  loss {loss:.4f}  {knows}"
            print(f"{told}  {time.monotonic() - began:.0f} s", flush=True)

    params = decoder.init(config, jax.random.key(SEED))
    params = fitted(params, batches(), loss_of, rate=PEAK_RATE, warmup=100, steps=steps, say=say)
    write_model(out, params, config, fields=fields, tokenizer=tokenizer)


if __name__ == "__main__":
    main()
