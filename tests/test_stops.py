"""What ends a response, with real tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_prompts import EOS, TEMPLATE, save
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ttrl_jax.data import stops
from ttrl_jax.data.prompts import load_tokenizer
from ttrl_jax.data.stops import of_files, of_run, of_template, of_texts
from ttrl_jax.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(save(tmp_path_factory.mktemp("chat"))))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"eos_token_id": 9}, (EOS, 9)),
        ({"eos_token_id": 0}, (0, EOS)),
        ({"eos_token_id": [9, 7]}, (EOS, 7, 9)),
        ({"eos_token_id": [EOS, 9, 9]}, (EOS, 9)),
        ({"eos_token_id": None}, (EOS,)),
        ({"eos_token_id": []}, (EOS,)),
        ({"temperature": 0.7}, (EOS,)),
        (None, (EOS,)),
    ],
)
def test_stop_ids_are_the_tokenizers_and_the_files(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, content: Any, expected: tuple[int, ...]
) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert tuple(of_files(tokenizer, str(tmp_path))) == expected


def test_stop_ids_of_a_tokenizer_without_eos(tmp_path: Path) -> None:
    endless = load_tokenizer(str(save(tmp_path, eos=None)))
    with pytest.raises(InputError, match="neither an eos_token nor config.json nor generation_config.json with"):
        of_files(endless, str(tmp_path))
    file = tmp_path / "generation_config.json"
    file.write_text("{}")
    with pytest.raises(InputError, match="No token ends a response"):
        of_files(endless, str(tmp_path))
    file.write_text('{"eos_token_id": [8, 5]}')
    assert tuple(of_files(endless, str(tmp_path))) == (5, 8)


@pytest.mark.parametrize("named", ["2", [2, "3"], True, [True], 2.0, -1, {"a": 1}])
def test_stop_ids_of_another_type_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, named: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    with pytest.raises(InputError, match="eos_token_id must be a token id or a list of them, not"):
        of_files(tokenizer, str(tmp_path))


def test_stop_ids_from_a_broken_file(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match="generation_config.json cannot be read as JSON"):
        of_files(tokenizer, str(tmp_path))


def test_stop_texts_are_found_inside_of_tokens(tmp_path: Path) -> None:
    words = ["a", ".", "\n", ".\n\n", "a.", "\nb", "<eos>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    assert tuple(of_texts(tokenizer, ())) == ()
    assert tuple(of_texts(tokenizer, ("\n",))) == (2, 3, 5)
    assert tuple(of_texts(tokenizer, ("\n\n", "a."))) == (3, 4)


def test_without_stop_texts_no_token_is_decoded(tokenizer: PreTrainedTokenizerBase, monkeypatch) -> None:
    decoded = []
    monkeypatch.setattr(stops, "decode", lambda tokenizer, ids: decoded.append(ids) or "a")
    assert tuple(of_texts(tokenizer, ())) == () and decoded == []
    assert len(of_texts(tokenizer, ("a",))) == len(decoded) == len(tokenizer)


@pytest.mark.parametrize("text", ["", "no token has this"])
def test_a_stop_text_that_no_token_has(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    with pytest.raises(InputError, match="rollout.stop has"):
        of_texts(tokenizer, ("a", text))


CHATML = (
    "{% for message in messages %}<user>{{ message.role }}\n{{ message.content }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}<user>assistant\n{% endif %}"
)


def base_model(folder: Path, *, template: str | None = CHATML) -> PreTrainedTokenizerBase:
    """As Qwen's base models have it: turns end with another token than texts."""
    return load_tokenizer(str(save(folder, template=template, added=("<eot>", "<word>"), special=True)))


def test_the_end_of_a_turn_ends_a_response(tmp_path: Path) -> None:
    tokenizer = base_model(tmp_path)
    eot = tokenizer.convert_tokens_to_ids("<eot>")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [EOS, 9]}))
    files = of_files(tokenizer, str(tmp_path))
    assert files == {EOS: ("tokenizer", "config.json"), 9: ("config.json",)}
    found = of_run(tokenizer, files, end_of_turn=True, texts=("<wo",))
    word = tokenizer.convert_tokens_to_ids("<word>")
    assert found == files | {eot: ("chat template",), word: ("rollout.stop '<wo'",)}
    assert of_run(tokenizer, files, end_of_turn=False, texts=()) == files
    assert stops.silent(tokenizer, found) >= {EOS, eot, word} and 9 not in stops.silent(tokenizer, found)
    assert stops.described(tokenizer, {eot: ("chat template",)}) == f"'<eot>' ({eot}, chat template)"


@pytest.mark.parametrize("template", [None, TEMPLATE, "{{ messages[1].content }} <", "{{ 1 / 0 }}", "{{ bos_token }}"])
def test_a_template_without_an_end_of_turn(tmp_path: Path, template: str | None) -> None:
    assert of_template(base_model(tmp_path, template=template)) == {}
