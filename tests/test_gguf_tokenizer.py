"""Semantics: the tokenizer a GGUF file describes, its special tokens and what ends a response."""

import pytest
import tiny_gguf

from ttrl_jax.data.gguf_tokenizer import make, stop_ids
from ttrl_jax.data.prompts import decode
from ttrl_jax.errors import InputError

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


def metadata(**changed):
    """`changed`: None leaves the key out."""
    given = {f"tokenizer.ggml.{name}": x for name, x in (tiny_gguf.TOKENIZER | changed).items() if x is not None}
    return given | {"general.architecture": "llama", "tokenizer.chat_template": TEMPLATE}


def ids_of(text, **changed):
    return make(metadata(**changed), path="x.gguf")(text)["input_ids"]


def test_text_to_ids_and_back():
    """Hand-worked: digits alone, merges, spaces, special tokens whole."""
    assert ids_of("ab a 12") == [16, 17, 15, 4, 5]
    assert ids_of("  12</s>") == [15, 15, 4, 5, 2]
    assert ids_of("a<think>b") == [13, 18, 14]
    tokenizer = make(metadata(), path="x.gguf")
    assert decode(tokenizer, [16, 17, 15, 4, 5, 2], silent=frozenset({2})) == "ab a 12"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<s>ab" and tokenizer(chat)["input_ids"] == [1, 16]


def test_a_bos_token_before_text():
    assert ids_of("ab", add_bos_token=True) == [1, 16]
    assert ids_of("ab", add_bos_token=None) == [16]


def test_what_ends_a_response():
    assert stop_ids(metadata(), path="x.gguf") == (2,)
    assert stop_ids(metadata(eot_token_id=18, eom_token_id=0), path="x.gguf") == (0, 2, 18)
    with pytest.raises(InputError, match="No token ends a response"):
        stop_ids(metadata(eos_token_id=None), path="x.gguf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": None}, "holds no tokenizer"),
        ({"model": None}, "holds no tokenizer"),
        ({"model": "bert"}, "cannot be made"),
        ({"pre": "future"}, "how its tokenizer 'future' splits text is not known"),
        ({"eos_token_id": 99}, "the id of the eos token, 99, is not in its vocabulary"),
    ],
)
def test_tokenizers_that_cannot_be_made(changed, message):
    with pytest.raises(InputError, match=message):
        make(metadata(**changed), path="x.gguf")
