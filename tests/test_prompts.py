"""Prompts with a real tokenizer, built here and saved as a Hugging Face folder."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ttrl_jax.data import stops
from ttrl_jax.data.problems import Problem
from ttrl_jax.data.prompts import (
    PromptEncoder,
    chat_template,
    check_vocabulary,
    decode,
    load_tokenizer,
    turns,
)
from ttrl_jax.errors import InputError
from ttrl_jax.reward.extract import Answer, extract

SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<system>", "<assistant>"]
PAD, BOS, EOS, USER, SYSTEM, ASSISTANT = range(6)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + TEMPLATE


SWITCH = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def save(
    folder: Path,
    *,
    template: Any = TEMPLATE,
    eos: str | None = "<eos>",
    added: tuple[str, ...] = (),
    special: bool = False,
) -> Path:
    """A byte-level tokenizer: one id per byte of UTF-8, a first token <bos> before every text."""
    pieces = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=special) for token in added])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token=eos,
    )  # fmt: skip
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(folder))


def encoder(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> PromptEncoder:
    """Asks with the turns that system, prefix and suffix make."""
    asked = {"system": "", "prefix": "", "suffix": ""}
    asked |= {name: changes.pop(name) for name in asked if name in changes}
    options = {"chat_template": True, "thinking": False, "max_tokens": 100}
    return PromptEncoder(tokenizer, messages=functools.partial(turns, **asked), **(options | changes))


def problems(*questions: str) -> list[Problem]:
    return [Problem(i, f"q{i}", question, None) for i, question in enumerate(questions)]


def letters(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of ASCII letters, straight from the vocabulary."""
    return [tokenizer.get_vocab()[letter] for letter in text]


# ---- render


def test_render_in_the_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encoder(tokenizer).render("1 + 1?") == "<bos><user>1 + 1?<assistant>"


def test_render_with_system_prefix_and_suffix(tokenizer: PreTrainedTokenizerBase) -> None:
    made = encoder(tokenizer, system="Be brief.", prefix="Q: ", suffix="\nBox it.")
    assert made.render("1 + 1?") == "<bos><system>Be brief.<user>Q: 1 + 1?\nBox it.<assistant>"


def test_render_as_plain_text(tokenizer: PreTrainedTokenizerBase) -> None:
    made = encoder(tokenizer, chat_template=False, prefix="Q: ", suffix="\nA:")
    assert made.render("1 + 1?") == "Q: 1 + 1?\nA:"


def test_braces_in_a_question_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    question = "What is {0} in \\frac{1}{2} and {{ bos_token }}?"
    assert encoder(tokenizer).render(question) == f"<bos><user>{question}<assistant>"
    assert encoder(tokenizer, chat_template=False, prefix="{").render(question) == "{" + question


def test_chat_template_is_wanted_and_there_is_none(tmp_path: Path) -> None:
    plain = load_tokenizer(str(save(tmp_path, template=None)))
    with pytest.raises(InputError, match="has no chat template: set prompt.chat_template=False") as raised:
        encoder(plain)
    assert str(tmp_path) in str(raised.value)
    assert encoder(plain, chat_template=False).render("a") == "a"


def test_system_turn_needs_the_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"Turns of system need prompt.chat_template=True \(prompt.system"):
        encoder(tokenizer, chat_template=False, system="Be brief.").render("a")


def test_turns_of_a_task_of_ones_own(tokenizer: PreTrainedTokenizerBase) -> None:
    def shown(question: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": question},
        ]

    options = {"messages": shown, "thinking": False, "max_tokens": 100}
    made = PromptEncoder(tokenizer, chat_template=True, **options)
    assert made.render("3?") == "<bos><user>1?<assistant>2<user>3?<assistant>"
    with pytest.raises(InputError, match="chat_template=True"):
        PromptEncoder(tokenizer, chat_template=False, **options).render("3?")


def test_chat_template_that_refuses_the_system_turn(tmp_path: Path) -> None:
    refusing = load_tokenizer(str(save(tmp_path, template=REFUSING)))
    with pytest.raises(InputError, match="refuses the prompt: no system turn here"):
        encoder(refusing, system="Be brief.").render("a")
    assert encoder(refusing).render("a") == "<bos><user>a<assistant>"


PARTS = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"
)


def test_a_template_of_content_parts(tmp_path: Path) -> None:
    assert (
        encoder(load_tokenizer(str(save(tmp_path, template=PARTS)))).render("What is 1 + 1?") == "<user>What is 1 + 1?"
    )


@pytest.mark.parametrize(
    "template", ["<user>{{ bos_token }}", "{{ messages[0].role }}", "{{ messages[0].content[:3] }}"]
)
def test_a_template_that_drops_the_question(tmp_path: Path, template: str) -> None:
    with pytest.raises(InputError, match="drops the question: of 'What is 1 .* it makes the prompt"):
        encoder(load_tokenizer(str(save(tmp_path, template=template)))).render("What is 1 + 1?")


def test_a_template_may_space_the_question_in_its_own_way(tmp_path: Path) -> None:
    trimming = load_tokenizer(str(save(tmp_path, template="<user>{{ messages[0].content | trim | upper | lower }}")))
    assert encoder(trimming).render("  what is\n1 ? ") == "<user>what is\n1 ?"


@pytest.mark.parametrize("broken", ["{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ messages[9].content.x }}", "{{ [].pop() }}"])
def test_a_template_that_fails(tmp_path: Path, broken: str) -> None:
    with pytest.raises(InputError, match="refuses the prompt: .* set prompt.chat_template=False"):
        encoder(load_tokenizer(str(save(tmp_path, template=broken)))).render("1?")


def test_a_tokenizer_file_is_followed_whatever_the_model_type(tmp_path: Path) -> None:
    """For a qwen2 model transformers would put Qwen's own way to split text in the place of the file's."""
    save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    said = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Tom has 37 apples, I'm 12."
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == said.encode(text).ids
    other = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True).backend_tokenizer
    assert json.loads(other.to_str())["pre_tokenizer"] != json.loads(said.to_str())["pre_tokenizer"]


def test_a_tokenizer_of_sentencepiece_alone(tmp_path: Path) -> None:
    lines = iter([f"{a} + {b} = {a + b}: Tom has {a} apples" for a in range(1, 60) for b in range(1, 20)])
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=120, model_type="bpe", minloglevel=2
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}')
    tokenizer, said = load_tokenizer(str(tmp_path)), sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text in ("Tom has 12 apples", "3 + 4 = 7"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == said.encode(text) and decode(tokenizer, ids) == text


def test_a_folder_with_tekken_alone(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(
        InputError, match="has no tokenizer but tekken.json, which Mistral's own program reads: expected"
    ):
        load_tokenizer(str(tmp_path))


def test_the_thinking_switch(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A template that has the switch is told; to another one it is nothing."""
    switched = load_tokenizer(str(save(tmp_path, template=SWITCH)))
    assert encoder(switched, thinking=True).render("a") == "<bos><user>a<assistant>"
    assert encoder(switched, thinking=False).render("a") == "<bos><user>a<assistant><think></think>"
    assert encoder(tokenizer, thinking=True).render("a") == encoder(tokenizer).render("a")
    assert encoder(switched, thinking=True, chat_template=False).render("a") == "a"


def test_the_template_among_several(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert chat_template(tokenizer) == TEMPLATE
    assert chat_template(load_tokenizer(str(save(tmp_path / "none", template=None)))) is None
    several = load_tokenizer(str(save(tmp_path / "several", template={"default": SWITCH, "tool_use": TEMPLATE})))
    assert chat_template(several) == SWITCH
    other = load_tokenizer(str(save(tmp_path / "other", template={"rag": SWITCH, "tool_use": TEMPLATE})))
    with pytest.raises(
        InputError, match="has chat templates (rag, tool_use|tool_use, rag) and no 'default' among them"
    ):
        chat_template(other)


# ---- encode


def test_encode_gives_each_prompt_its_own_length(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encoder(tokenizer, system="xy", prefix="p", suffix="s").encode(problems("abc", "d", "efgh"))
    expected = [
        [BOS, SYSTEM, *letters(tokenizer, "xy"), USER, *letters(tokenizer, f"p{question}s"), ASSISTANT]
        for question in ("abc", "d", "efgh")
    ]
    assert [ids.tolist() for ids in encoded] == expected
    assert [ids.shape for ids in encoded] == [(11,), (9,), (12,)]
    assert all(ids.dtype == np.int32 for ids in encoded)


def test_first_token_is_not_doubled_in_the_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    # This tokenizer adds <bos> to text by itself, and the template spells it out as well.
    assert tokenizer("<bos>a")["input_ids"] == [BOS, BOS, *letters(tokenizer, "a")]
    (ids,) = encoder(tokenizer).encode(problems("a"))
    assert ids.tolist() == [BOS, USER, *letters(tokenizer, "a"), ASSISTANT]


def test_plain_text_gets_the_tokenizers_own_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    (ids,) = encoder(tokenizer, chat_template=False, suffix="s").encode(problems("ab"))
    assert ids.tolist() == [BOS, *letters(tokenizer, "abs")]


def test_encode_does_not_depend_on_the_neighbours(tokenizer: PreTrainedTokenizerBase) -> None:
    made = encoder(tokenizer)
    questions = problems("a", "a much longer question than that", "ü €")
    together = made.encode(questions)
    for alone, ids in zip(questions, together, strict=True):
        assert made.encode([alone])[0].tolist() == ids.tolist()
    assert len(together[2]) == 3 + 6  # bytes of UTF-8: 2 + 1 + 3


def test_too_long_prompts_are_named(tokenizer: PreTrainedTokenizerBase) -> None:
    made = encoder(tokenizer, max_tokens=6)  # three are the template's
    with pytest.raises(InputError) as raised:
        made.encode(problems("abcd", "abc", "abcde"))
    assert str(raised.value) == (
        "A prompt must have 1 to 6 tokens; not so, by id (tokens): q0 (7), q2 (8). "
        "Raise prompt.max_tokens or take these questions out."
    )
    assert [len(ids) for ids in made.encode(problems("abc", "a"))] == [6, 4]


def test_many_too_long_prompts_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"q0 \(5\), q1 \(5\), q2 \(5\), q3 \(5\), q4 \(5\) and 2 more\."):
        encoder(tokenizer, max_tokens=4).encode(problems(*["ab"] * 7))


def test_prompt_longer_than_the_model_is_not_cut(tmp_path: Path) -> None:
    """A tokenizer's model_max_length must neither shorten prompts nor fail them: max_tokens alone decides."""
    file = save(tmp_path) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 8}))
    short = load_tokenizer(str(tmp_path))
    assert short.model_max_length == 8
    (ids,) = encoder(short).encode(problems("a" * 40))
    assert len(ids) == 43


def test_prompt_without_tokens_is_refused(tmp_path: Path) -> None:
    nothing = load_tokenizer(str(save(tmp_path, template="{{ '' }}")))
    with pytest.raises(InputError, match=r"1 to 100 tokens; not so, by id \(tokens\): q0 \(0\)"):
        encoder(nothing).encode(problems(""))


def test_the_longest_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    made = encoder(tokenizer, max_tokens=6)
    assert made.longest(problems("a", "abc", "ab")) == 6
    with pytest.raises(InputError, match=r"q1 \(7\)"):
        made.longest(problems("abc", "abcd"))


# ---- load_tokenizer


def test_load_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == len(tokenizer.get_vocab()) == len(SPECIAL) + 256
    assert tokenizer.convert_ids_to_tokens(list(range(6))) == SPECIAL
    assert (tokenizer.eos_token_id, tokenizer.chat_template) == (EOS, TEMPLATE)


def test_missing_model_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        load_tokenizer(str(tmp_path / "none"))
    assert str(raised.value) == f"There is no model folder {tmp_path / 'none'}."


def test_file_is_no_model_folder(folder: Path) -> None:
    with pytest.raises(InputError, match="There is no model folder"):
        load_tokenizer(str(folder / "tokenizer.json"))


def test_folder_with_a_config_alone_has_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32}))
    with pytest.raises(InputError, match="has no tokenizer: expected one of tokenizer.json, "):
        load_tokenizer(str(tmp_path))


def test_broken_tokenizer_file(tmp_path: Path) -> None:
    (save(tmp_path) / "tokenizer.json").write_text("{")
    with pytest.raises(InputError) as raised:
        load_tokenizer(str(tmp_path))
    assert str(raised.value).startswith(f"The tokenizer in {tmp_path} cannot be loaded: ")
    assert "\n" not in str(raised.value)


# ---- check_vocabulary


def test_check_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    size = len(SPECIAL) + 256
    check_vocabulary(tokenizer, size, "model")
    check_vocabulary(tokenizer, size + 58, "model")
    last = tokenizer.convert_ids_to_tokens(size - 1)
    with pytest.raises(InputError) as raised:
        check_vocabulary(tokenizer, size - 1, "model")
    assert str(raised.value) == (
        f"The tokenizer does not belong to the model in model: its token {last!r} has id 261 "
        "and the model's vocabulary ends at 260."
    )


def test_check_vocabulary_counts_added_tokens(folder: Path) -> None:
    grown = load_tokenizer(str(folder))
    grown.add_tokens(["<think>"])
    check_vocabulary(grown, 263, "model")
    with pytest.raises(InputError, match="its token '<think>' has id 262"):
        check_vocabulary(grown, 262, "model")


# ---- decode


def test_decode_leaves_out_what_ends_a_response(tokenizer: PreTrainedTokenizerBase) -> None:
    """Other special tokens are text: answers may stand between them."""
    ids = [*letters(tokenizer, "ab"), ASSISTANT, *letters(tokenizer, "c"), EOS, PAD, PAD]
    silent = stops.silent(tokenizer, stops.of_files(tokenizer, "/nowhere"))
    assert silent == {EOS, PAD}
    assert decode(tokenizer, ids, silent=silent) == "ab<assistant>c"
    assert decode(tokenizer, [EOS, PAD], silent=silent) == decode(tokenizer, []) == ""


def test_answers_between_special_tokens_are_found(tmp_path: Path) -> None:
    special = load_tokenizer(str(save(tmp_path, added=("</think>", "<answer>", "</answer>", "\\boxed{"), special=True)))
    ids = special("a</think>\\boxed{7} <answer>8</answer>", add_special_tokens=False)["input_ids"]
    assert special.decode(ids, skip_special_tokens=True) == "a7} 8"
    text = decode(special, [*ids, EOS], silent=stops.silent(special, [EOS]))
    assert text == "a</think>\\boxed{7} <answer>8</answer>"
    assert extract(text, strategies=("boxed",), thinking=True) == Answer("7")
    assert extract(text, strategies=("tag:answer",), thinking=True) == Answer("8")


def test_decode_keeps_the_ends_of_thinking(tmp_path: Path) -> None:
    """Models have <think> and </think> as added tokens that are not special: the answer is found after the last."""
    thinker = load_tokenizer(str(save(tmp_path, added=("<think>", "</think>"))))
    opening, closing = (thinker.get_vocab()[token] for token in ("<think>", "</think>"))
    ids = [opening, *letters(thinker, "a"), closing, *thinker("\\boxed{7}", add_special_tokens=False)["input_ids"], EOS]
    text = decode(thinker, ids, silent=frozenset({EOS}))
    assert text == "<think>a</think>\\boxed{7}"
    assert extract(text, strategies=("boxed",), thinking=True) == Answer("7")
    assert extract(decode(thinker, ids[:2]), strategies=("last_number",), thinking=True) is None


def test_decode_keeps_spaces(folder: Path) -> None:
    cleaning = load_tokenizer(str(folder))
    # Both may be set by the folder; the second is what `transformers` needs to clean with this kind of model.
    cleaning.clean_up_tokenization_spaces = True
    cleaning.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    text = "a , b ! I do n't .  two  spaces \n ü € \\boxed{ 7 }"
    ids = cleaning(text, add_special_tokens=False)["input_ids"]
    assert cleaning.decode(ids) != text
    assert decode(cleaning, ids) == text


def test_decode_takes_arrays(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = letters(tokenizer, "xyz")
    assert decode(tokenizer, np.array(ids, np.int32)) == decode(tokenizer, tuple(ids)) == "xyz"
