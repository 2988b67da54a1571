"""Load exported models in releases 4.57 and 5 of transformers, each in a virtual environment of its own.

    python scripts/check_exports.py --out runs/exports

Makes model folders as people have them (the quickstart's; one with the tokenizer settings of Llama 3 and Qwen as
release 4 wrote them; one that came as GGUF), writes each as `ttrl_jax.export` does, and lets every release read config,
rotation and tokenizer. Their token ids must be those of the source, and the rotation the one that was computed. Prints
a line for each and exits with 1 if one differs. Some minutes, most of them for the environments, which stay in --out.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout
sys.path.insert(0, str(ROOT / "tests"))

from ttrl_jax import huggingface  # noqa: E402
from ttrl_jax.model import weights  # noqa: E402
from ttrl_jax.model.sharding import make_mesh  # noqa: E402
from ttrl_jax.source import tokenizer_of  # noqa: E402

RELEASES = {"4.57": "transformers>=4.57,<4.58", "5": "transformers>=5,<6"}
TEXT = "Tom has 37 apples <|end|>"
READS = """
import json, sys
from transformers import AutoConfig, AutoTokenizer
config, tokenizer = AutoConfig.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta, **(config.rope_scaling or {})}
print(json.dumps({"ids": tokenizer(sys.argv[2])["input_ids"], "theta": rope["rope_theta"],
                  "kind": rope.get("rope_type", "default"), "factor": rope.get("factor"),
                  "template": tokenizer.chat_template}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for models and environments")
    out, failed = parser.parse_args().out, 0
    for name in ("sources", "exported"):
        shutil.rmtree(out / name, ignore_errors=True)
    models = {name: export(source, out / "exported" / name) for name, source in sources(out / "sources").items()}
    for release, requirement in RELEASES.items():
        python = environment(out / f"transformers-{release}", requirement)
        for name, (folder, expected) in models.items():
            run = subprocess.run([python, "-c", READS, str(folder), TEXT], capture_output=True, text=True)
            got = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else run.stderr.splitlines()[-1:]
            same = got == expected
            failed += not same
            print(
                f"transformers {release:5} {name:10} {'ok' if same else f'got {got}, expected {expected}'}", flush=True
            )
    return int(failed > 0)


def sources(folder: Path) -> dict[str, Path]:
    """Model folders and a GGUF file, by name."""
    quickstart = ROOT / "configs" / "quickstart_model"
    made = {"quickstart": quickstart}
    changes = {
        "llama3": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "qwen": {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|end|>"]},
    }
    for name, changed in changes.items():
        made[name] = Path(shutil.copytree(quickstart, folder / name))
        config = json.loads((folder / name / "config.json").read_text())
        config.pop("rope_parameters", None)
        stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
        config |= {"rope_theta": 5e5, "rope_scaling": stretched if name == "llama3" else None}
        (folder / name / "config.json").write_text(json.dumps(config))
        settings = json.loads((folder / name / "tokenizer_config.json").read_text())
        settings.pop("backend", None)
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings | changed))
    return made | {"gguf": gguf_of(folder / "tiny.gguf")}


def gguf_of(path: Path) -> Path:
    import dataclasses

    import tiny_gguf
    from tiny_model import LLAMA, random_params

    config = dataclasses.replace(LLAMA, width=32, ffn=64, heads=4, kv_heads=2, head_dim=8, vocab=19)
    tensors = weights.to_huggingface(random_params(config), config)
    tiny_gguf.write(path, config, tensors, tokenizer=tiny_gguf.TOKENIZER | {"chat_template": "{{ bos_token }}"})
    return path


def export(source: Path, out: Path) -> tuple[Path, dict[str, object]]:
    """The exported folder, and what every release must read in it."""
    model, (tokenizer, _) = weights.read_model(source), tokenizer_of(source)
    params = weights.load(source, model, make_mesh(data=1, fsdp=-1, tensor=1))
    made = dict(source=source, model=model, dtype="float32", card="", shard_bytes=huggingface.SHARD_BYTES)
    huggingface.write(out, weights.stream_out(params, model), **made)
    rope = model.rope
    kind = {"kind": rope.kind, "factor": None if rope.kind == "default" else rope.factor, "theta": rope.theta}
    return out, {"ids": tokenizer(TEXT)["input_ids"], **kind, "template": tokenizer.chat_template}


def environment(folder: Path, requirement: str) -> str:
    """Its Python, made if need be."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", requirement, "jinja2"], check=True)
    return python


if __name__ == "__main__":
    sys.exit(main())
