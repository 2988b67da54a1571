"""Semantics: a model that is not here is looked for on the hub, and its size is told first."""

import huggingface_hub
import pytest

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
