"""Merge two models of one shape by spherical interpolation (SLERP), into a Hugging Face folder.

    python -m ttrl_jax.merge RECIPE.yml --out DIR

RECIPE.yml is a recipe as mergekit has it, of its method slerp: slices or models, merge_method, base_model, parameters.t
and dtype; tokenizer_source: base asks besides that both models have one vocabulary. A model may be MODEL+ADAPTER, with
PEFT's folder of LoRA adapters, which are added to its weights.
DIR is a new or empty folder. Config and tokenizer are those of base_model, which t=0 gives; t=1 gives the other model.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.MERGE, doc=__doc__)

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from absl import flags

from ttrl_jax import cli, huggingface
from ttrl_jax.errors import InputError
from ttrl_jax.model import peft, weights
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.shapes import parameter_count
from ttrl_jax.run import places
from ttrl_jax.source import adapter_source, model_source, tokenizer_of

_COLINEAR = 0.9995  # |cosine| above which an arc is too short, or too near a half circle, to divide by its sine
_NO_DIRECTION = 1e-8  # norm up to which a tensor is not normalised
_SAME = ("family", "vocab", "width", "ffn", "layers", "heads", "kv_heads", "head_dim", "tied")

_CARD = """---
library_name: transformers
tags: [merge, slerp]
{head}---

# {base} and {other}, merged

Each tensor of this model lies between that of {base} (t = 0) and that of {other} (t = 1) on the arc that joins them
(SLERP), as this recipe says. Config and tokenizer are those of {base}. Measure before you rely on the model.

```yaml
{recipe}```
"""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe file asks for."""

    base: str  # folder, GGUF file or hub name
    other: str
    # First layer and the one after the last, each beginning where the last ends; none: one slice of all layers.
    slices: tuple[tuple[int, int], ...]
    t: tuple[tuple[str, tuple[float, ...]], ...]  # part of a tensor's name -> anchors over its slice; the first counts
    dtype: str
    one_vocabulary: bool  # whether the tokenizers must have the same tokens


def main(recipe: str) -> int:
    if not flags.FLAGS.out:
        raise InputError("--out is missing; give a new folder for the model")
    out = places.local(flags.FLAGS.out, flag="--out")
    huggingface.check_out(out)
    wanted = read_recipe(places.local(recipe, flag="RECIPE"))
    merge(wanted, out)
    print(f"{wanted.base} and {wanted.other} are merged in {out}, as {wanted.dtype}")
    return 0


def merge(recipe: Recipe, out: Path) -> None:
    """Write the merged model to the Hugging Face folder `out`, which appears under its name only when it is complete.

    Raises InputError, with nothing written, if a model cannot be read, the two are not of one shape, the recipe's
    layers are not theirs, a tensor has no t or is not finite, or there is no room.
    """
    both = [_parts(path) for path in (recipe.base, recipe.other)]
    sources = [model_source(path, key="model") for path, _ in both]
    model, other = [weights.read_model(source) for source in sources]
    recipe = dataclasses.replace(recipe, slices=recipe.slices or ((0, model.layers),))
    _check_pair(recipe, model, other)
    if recipe.one_vocabulary:
        _check_vocabularies(recipe, sources)
    tensors = [weights.check(source, model) for source in sources]
    adapters = [_deltas(adapter, model) for _, adapter in both]
    ts = {name: t_of(recipe, name) for name in weights.names(model)}
    dtype = huggingface.DTYPES[recipe.dtype]
    huggingface.check_room(out, dtype.itemsize * parameter_count(model))

    def merged() -> Iterator[tuple[str, np.ndarray]]:
        for name, t in ts.items():
            # Rounded before and after: the recipe's dtype is that of the models as they are merged.
            with np.errstate(over="ignore"):  # an infinity is told below, by name
                parents = [
                    _with(np.asarray(opened[name][:]), more.get(name)).astype(dtype).astype(np.float32)
                    for opened, more in zip(tensors, adapters, strict=True)
                ]
            for path, values in zip((recipe.base, recipe.other), parents, strict=True):
                if not np.isfinite(values).all():
                    raise InputError(
                        f"{name} of {path} has numbers that are not finite in {recipe.dtype}; use a wider dtype or "
                        "another model"
                    )
            yield name, slerp(t, *parents)

    huggingface.write(
        out,
        merged(),
        source=sources[0],
        model=model,
        dtype=recipe.dtype,
        card=_card(recipe),
        shard_bytes=huggingface.SHARD_BYTES,
    )


def _parts(path: str) -> tuple[str, str | None]:
    """A model and the adapters that go with it, if any."""
    if Path(path).expanduser().exists() or "+" not in path:
        return path, None
    model, _, adapter = path.partition("+")
    return model, adapter


def _deltas(adapter: str | None, model: ModelConfig) -> dict[str, Callable[[], np.ndarray]]:
    if adapter is None:
        return {}
    found, adapters = peft.read(adapter_source(adapter, key="what stands behind +"), model)
    return peft.deltas(adapters, dataclasses.replace(model, lora=found))


def _with(tensor: np.ndarray, delta: Callable[[], np.ndarray] | None) -> np.ndarray:
    return tensor if delta is None else tensor.astype(np.float32) + delta()


def slerp(t: float, base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The point at `t` of the arc from `base` to `other`, seen as vectors: float32 of one shape each, all float32.

    With the angle a between them it is (sin((1 - t) a) base + sin(t a) other) / sin(a); on the line between them if
    they are colinear. t=0 is `base` and t=1 `other`, bit by bit. Shoemake, Animating rotation with quaternion curves,
    1985; the two thresholds are mergekit's.
    """
    if t in (0, 1):
        return other if t else base
    cosine = np.sum(_direction(base) * _direction(other))
    if abs(cosine) > _COLINEAR:
        return (1 - t) * base + t * other
    angle = np.arccos(cosine)
    part = angle * t
    return np.sin(angle - part) / np.sin(angle) * base + np.sin(part) / np.sin(angle) * other


def _direction(tensor: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(tensor)
    return tensor / norm if norm > _NO_DIRECTION else tensor


def t_of(recipe: Recipe, name: str) -> float:
    """t of a Hugging Face tensor: of the first entry whose filter is part of its name.

    Several values are anchors at equal distances from the first to the last layer of the tensor's slice, with straight
    lines between them. A slice of one layer has the last, and a tensor of no layer (embedding, last norm, head) the
    first. Raises InputError if no entry is for the tensor.
    """
    for part, anchors in recipe.t:
        if part in name:
            return float(np.interp(_place(recipe, name) * (len(anchors) - 1), range(len(anchors)), anchors))
    raise InputError(f"parameters.t has no value for {name}; add an entry without a filter at its end")


def _place(recipe: Recipe, name: str) -> float:
    """Where in its slice a tensor's layer is, from 0 to 1."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer is None:
        return 0.0
    begin, end = next((a, b) for a, b in recipe.slices if a <= int(layer[1]) < b)
    return (int(layer[1]) - begin) / (end - begin - 1) if end - begin > 1 else 1.0


def _check_pair(recipe: Recipe, base: ModelConfig, other: ModelConfig) -> None:
    pair = dataclasses.asdict(base), dataclasses.asdict(other)
    differ = {name: tuple(fields[name] for fields in pair) for name in pair[0] if pair[0][name] != pair[1][name]}
    wrong = [f"{name} {differ[name][0]} and {differ[name][1]}" for name in _SAME if name in differ]
    if wrong:
        raise InputError(f"{recipe.base} and {recipe.other} are not of one shape, they have " + ", ".join(wrong))
    if recipe.slices[-1][1] != base.layers:
        raise InputError(
            f"the slices end with layer_range {list(recipe.slices[-1])} and the models have {base.layers} layers; "
            f"end with {base.layers}, as no layer is left out"
        )
    if differ:
        print(f"{recipe.other} has another {', '.join(differ)}; that of {recipe.base} is kept", file=sys.stderr)


def _check_vocabularies(recipe: Recipe, sources: list[Path]) -> None:
    """tokenizer_source: base puts each row of the embeddings where the base model's tokenizer has its token: here
    nothing has to be moved for that. mergekit drops rows that no token has; here they stay."""
    base, other = [tokenizer_of(source)[0].get_vocab() for source in sources]
    if base != other:
        token = min(token for token in base.keys() | other.keys() if base.get(token) != other.get(token))
        raise InputError(
            f"the tokenizers of {recipe.base} and {recipe.other} differ, such as in {token!r}; tokenizer_source: base "
            "moves no tokens here: take two models with one vocabulary"
        )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file. Raises InputError naming what is missing, wrong, or asks for what is not computed here."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a recipe ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    optional = ("slices", "models", "tokenizer_source", "tokenizer")
    top = _fields(given, ("merge_method", "base_model", "parameters", "dtype"), str(path), optional=optional)
    if top["merge_method"] != "slerp":
        raise InputError(f"{path}: merge_method is {top['merge_method']!r}, only slerp is computed")
    if top["dtype"] not in list(huggingface.DTYPES):
        raise InputError(f"{path}: dtype is {top['dtype']!r}, expected one of {', '.join(huggingface.DTYPES)}")
    t = _fields(top["parameters"], ("t",), f"{path}: parameters")["t"]
    if ("slices" in top) == ("models" in top):
        raise InputError(f"{path} should have slices or models, and not both")
    base = top["base_model"]
    if "slices" in top:
        other, slices = _slices(top["slices"], base, f"{path}: slices")
    else:
        other, slices = _other_model(top["models"], base, f"{path}: models"), ()
    for name in (base, other):
        if "@" in name and not Path(name).expanduser().exists():
            raise InputError(
                f"{path}: {name} names a revision (@), which is not read; give a folder that has the model itself"
            )
    t = _settings(t, f"{path}: parameters.t")
    return Recipe(base, other, slices, t, top["dtype"], _names_tokenizer(top, str(path)))


def _names_tokenizer(top: dict[str, Any], where: str) -> bool:
    """Whether a recipe says that the tokenizer is the base model's; without a word it is, too."""
    named = top["tokenizer"] if "tokenizer" in top else None
    source = _fields(named, ("source",), f"{where}: tokenizer")["source"] if named is not None else None
    if "tokenizer_source" in top:
        source = top["tokenizer_source"]
    if source not in (None, "base", top["base_model"]):
        raise InputError(f"{where}: the tokenizer's source is {source!r}; only base is computed, make it that")
    return source is not None


def _other_model(given: Any, base: Any, where: str) -> str:
    """The model that is not `base`, of whole models; the base need not be among them."""
    if not isinstance(given, list) or not given:
        raise InputError(f"{where} should be a list of models, got {given!r}")
    names = [_fields(each, ("model",), f"{where}[{i}]")["model"] for i, each in enumerate(given)]
    others = [name for name in names if name != base]
    if not all(isinstance(name, str) for name in [*names, base]) or len(others) != 1 or len(names) > 2:
        raise InputError(f"{where} should have base_model, {base!r}, and one other model, got {names}")
    return others[0]


def _fields(given: Any, required: tuple[str, ...], where: str, *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mapping with these keys and no others."""
    if not isinstance(given, dict):
        raise InputError(f"{where} should be a mapping with {', '.join(required)}, got {given!r}")
    for name in given:
        if name not in required + optional:
            raise InputError(f"{where}: {name} is not computed; only {', '.join(required + optional)} are, remove it")
    for name in required:
        if name not in given:
            raise InputError(f"{where}: {name} is missing, add it")
    return given


def _slices(given: Any, base: Any, where: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """(the model that is not `base`, the slices' ranges of layers)."""
    if not isinstance(given, list) or not given:
        raise InputError(f"{where} should be a list of slices, got {given!r}")
    others, ranges = set(), []
    for i, each in enumerate(given):
        here = f"{where}[{i}]"
        sources = _fields(each, ("sources",), here)["sources"]
        if not isinstance(sources, list) or len(sources) != 2:
            raise InputError(f"{here}.sources should be a list of two models, got {sources!r}")
        sources = [
            _fields(source, ("model", "layer_range"), f"{here}.sources[{j}]") for j, source in enumerate(sources)
        ]
        names = [source["model"] for source in sources]
        if not all(isinstance(name, str) for name in names) or base not in names or names[0] == names[1]:
            raise InputError(f"{here} should have base_model, {base!r}, and one other model, got {names}")
        others |= set(names) - {base}
        first, second = [_range(source["layer_range"], f"{here}.sources[{j}]") for j, source in enumerate(sources)]
        if first != second:
            raise InputError(f"{here} has layer_range {list(first)} and {list(second)}; only equal ones are computed")
        if first[0] != (ranges[-1][1] if ranges else 0):
            raise InputError(
                f"{here}: layer_range {list(first)} should begin with {ranges[-1][1] if ranges else 0}; layers are not "
                "left out, repeated or moved"
            )
        ranges.append(first)
    if len(others) > 1:
        raise InputError(f"{where} has {len(others)} models besides base_model, {sorted(others)}; only one is computed")
    return others.pop(), tuple(ranges)


def _range(given: Any, where: str) -> tuple[int, int]:
    if not isinstance(given, list) or [type(x) for x in given] != [int, int] or not 0 <= given[0] < given[1]:
        raise InputError(f"{where}: layer_range should be [first layer, last layer + 1], got {given!r}")
    return given[0], given[1]


def _settings(given: Any, where: str) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """A number, a list of anchors, or a list of these by filter, as the last."""
    by_filter = isinstance(given, list) and any(isinstance(each, dict) for each in given)
    settings = []
    for each in given if by_filter else [{"value": given}]:
        each = {"filter": None} | _fields(each, ("value",), where, optional=("filter",))
        if not isinstance(each["filter"], str | None):
            raise InputError(f"{where}: filter should be part of a tensor's name, got {each['filter']!r}")
        anchors = each["value"] if isinstance(each["value"], list) else [each["value"]]
        if not anchors or not all(type(x) in (int, float) and 0 <= x <= 1 for x in anchors):
            raise InputError(f"{where}: value should be a number from 0 to 1, or a list of such, got {each['value']!r}")
        settings.append(("" if each["filter"] in (None, "*") else each["filter"], tuple(anchors)))
    return tuple(settings)


def _shown(path: str) -> str:
    return Path(path).name if Path(path).expanduser().exists() else path


def _card(recipe: Recipe) -> str:
    """The model card. Of a local path only the name: where files lay on this machine says nothing elsewhere."""
    base, other = ["+".join(_shown(part) for part in _parts(x) if part) for x in (recipe.base, recipe.other)]
    shown = {
        "slices": [
            {"sources": [{"model": name, "layer_range": list(layers)} for name in (base, other)]}
            for layers in recipe.slices
        ],
        "merge_method": "slerp",
        "base_model": base,
        "parameters": {"t": [{"filter": part or "*", "value": list(anchors)} for part, anchors in recipe.t]},
        "dtype": recipe.dtype,
    } | ({"tokenizer_source": "base"} if recipe.one_vocabulary else {})
    hub = [name for name, _ in map(_parts, (recipe.base, recipe.other)) if not Path(name).expanduser().exists()]
    head = f"base_model: [{', '.join(hub)}]\n" if hub else ""
    return _CARD.format(head=head, base=base, other=other, recipe=yaml.safe_dump(shown, sort_keys=False))


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.MERGE, arguments=ARGUMENTS))
