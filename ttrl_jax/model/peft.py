"""Adapters as PEFT stores them: a folder of adapter_config.json and adapter_model.safetensors (peft 0.17 to 0.21)."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ttrl_jax.errors import InputError
from ttrl_jax.model import lora
from ttrl_jax.model.config import PROJECTIONS, Lora, ModelConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
_MODULES = {"attention": "self_attn", "ffn": "mlp"}
# Fields that change what an adapter computes -> the values that change nothing.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "target_parameters": (None, []),
}


def read(folder: Path, model: ModelConfig) -> tuple[Lora, lora.Adapters]:
    """The adapters in a PEFT folder, for a base of the shape `model`: what they are, and host arrays, float32.

    Raises InputError where the folder has none, where they are of another kind than plain LoRA on linear layers, or of
    another shape than the model.
    """
    fields = _fields(folder)
    tensors = _tensors(folder)
    found: dict[tuple[str, int, str], np.ndarray] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in PROJECTIONS:
            raise InputError(
                f"{folder} adapts {name.removesuffix('.weight')}; only {', '.join(PROJECTIONS)} can have adapters here"
            )
        found[match[2], int(match[1]), match[3]] = np.asarray(tensor, np.float32)
    targets = tuple(target for target in PROJECTIONS if any(target == key[0] for key in found))
    listed = fields.get("target_modules")
    if isinstance(listed, list) and set(listed) != set(targets):
        raise InputError(
            f"{folder / CONFIG} has target_modules={sorted(listed)}, and the weights are of "
            f"{', '.join(sorted(targets))}; save the adapter again"
        )
    if not all(np.isfinite(tensor).all() for tensor in found.values()):
        raise InputError(f"{folder / WEIGHTS} has numbers that are not finite; take another adapter")
    rank, alpha = fields["r"], fields["lora_alpha"]
    scale = alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)
    adapters = Lora(rank, scale, targets)
    shapes = lora.shapes(dataclasses.replace(model, lora=adapters))["lora"]

    def pair(target: str, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
        parts = {}
        for part, letter in (("a", "A"), ("b", "B")):
            layers = []
            for layer in range(model.layers):
                shape = like[part].shape[1:]
                flat = (math.prod(shape[:-1]), rank) if part == "a" else (rank, math.prod(shape[1:]))
                own = found.pop((target, layer, letter), None)
                got = "nothing" if own is None else list(own.shape)
                if own is None or own.shape != flat[::-1]:
                    raise InputError(
                        f"{folder} is no adapter of this model: lora_{letter} of {target} in layer {layer} is {got}, "
                        f"expected {list(flat[::-1])}"
                    )
                layers.append(own.T.reshape(shape))
            parts[part] = np.stack(layers)
        return parts

    tree: dict[str, Any] = {}
    for target in targets:
        room, name, _ = PROJECTIONS[target]
        tree.setdefault(room, {})[name] = pair(target, shapes[room][name])
    if found:
        raise InputError(f"{folder} is no adapter of this model: it has layer {next(iter(found))[1]} of {model.layers}")
    return adapters, {"lora": tree}


def base_of(folder: Path) -> str | None:
    """The name or folder of the model that the adapters in a PEFT folder were made for, if it is known."""
    found = _fields(folder).get("base_model_name_or_path")
    return found if isinstance(found, str) and found else None


def write(folder: Path, adapters: lora.Adapters, model: ModelConfig, *, base: str) -> None:
    """Write the adapters of `model.lora` into `folder`, which is there. base: hub name or folder of the model that they
    are for."""
    tensors = dict(named(adapters, model))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": model.lora.rank,
        "lora_alpha": model.lora.scale * model.lora.rank,
        "target_modules": list(model.lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def deltas(adapters: lora.Adapters, model: ModelConfig) -> dict[str, Callable[[], np.ndarray]]:
    """What the adapters add to the Hugging Face tensors of the base: by name, a function that computes scale * B A,
    float32 [d_out, d_in]."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, array in named(adapters, model):
        module, letter = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        pairs.setdefault(f"{module}.weight", {})[letter] = array
    scale = np.float32(model.lora.scale)
    return {name: lambda pair=pair: scale * (pair["B"] @ pair["A"]) for name, pair in pairs.items()}


def named(adapters: lora.Adapters, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by their names there, float32: A [r, d_in], B [d_out, r]."""
    rank = model.lora.rank
    for target in model.lora.targets:
        room, name, _ = PROJECTIONS[target]
        a, b = (np.asarray(adapters["lora"][room][name][part], np.float32) for part in ("a", "b"))
        for layer in range(model.layers):
            module = f"base_model.model.model.layers.{layer}.{_MODULES[room]}.{target}"
            yield f"{module}.lora_A.weight", np.ascontiguousarray(a[layer].reshape(-1, rank).T)
            yield f"{module}.lora_B.weight", np.ascontiguousarray(b[layer].reshape(rank, -1).T)


def _fields(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} is not an adapter: it has no {CONFIG}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = fields["r"], fields["lora_alpha"]
    except KeyError as error:
        raise InputError(f"{path} is not the config of a LoRA adapter: it has no {error.args[0]}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not the config of a LoRA adapter: {error}") from error
    if fields.get("peft_type") != "LORA" or type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        got = {name: fields.get(name) for name in ("peft_type", "r", "lora_alpha")}
        raise InputError(f"{path} should be a LoRA adapter with a rank and an alpha, got {got}")
    for name, values in _PLAIN.items():
        if fields.get(name) not in values:
            raise InputError(f"{path} has {name}={fields[name]!r}, which is not computed here")
    return fields


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; save the adapter with safe_serialization=True")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); download it again") from error
