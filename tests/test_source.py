"""Semantics: a model that is not here is looked for on the hub, and its size is told first."""

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from ttrl_jax.errors import InputError
from ttrl_jax.source import model_source


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "size"),
    [("Qwen/Qwen2.5-7B", "copy here: 7.6 billion parameters, 15.2 GB in bfloat16 ..."), ("a/b", "copy here ...")],
)
def test_the_size_of_a_download_is_told_if_it_is_known(name, size, capsys):
    with pytest.raises(InputError, match=f"{name} is no model folder here and could not be fetched"):
        model_source(name)
    assert capsys.readouterr().err == f"taking {name} from the hub, or from its {size}\n"


def test_a_folder_is_taken_as_it_is(tmp_path, capsys):
    assert model_source(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="There is no model"):
        model_source(str(tmp_path / "missing"))
    assert capsys.readouterr().err == ""


def test_the_hub_gives_each_weight_once(monkeypatch, tmp_path):
    """A repository with the weights in three forms and in sub-folders; what the hub's filter lets through."""
    files = [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "consolidated.safetensors", "fp16/model.safetensors", "onnx/tokenizer.json", "adapter_model.safetensors",
        "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "training_args.bin", "README.md",
    ]  # fmt: skip
    taken: list[str] = []

    def snapshot(name, *, allow_patterns, ignore_patterns):
        got = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for file in got:
            taken.append(file)
            (tmp_path / file).write_text("")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert model_source("org/name") == tmp_path
    assert taken == [*files[:8]]
    taken.clear()
    files[5:8] = []
    for file in tmp_path.iterdir():
        file.unlink()
    model_source("org/name")
    assert taken == [*files[:5], "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
