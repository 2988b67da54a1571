"""The model card of an exported model: what it is, and the numbers of the run that made it."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SETTINGS = [
    ("questions", "data", "path"),
    ("responses that vote on each question", "rollout", "votes"),
    ("of these trained on", "train", "samples"),
    ("questions of a step", "rollout", "prompts"),
    ("label", "reward", "label"),
    ("what a vote earns", "judge", "rule"),
    ("longest response, in tokens", "rollout", "max_tokens"),
    ("sampling temperature", "rollout", "temperature"),
    ("peak learning rate", "train", "learning_rate"),
    ("KL coefficient", "train", "kl_coef"),
]

_LORA_SETTINGS = [
    ("LoRA: rank", "rank"),
    ("LoRA: alpha", "alpha"),
    ("LoRA: learning rates are multiplied by", "rate_factor"),
]
_LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")"""
_LOAD_ADAPTERS = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)"""

_LICENCE = ("license", "license_name", "license_link")

_LABELS = {
    "majority": "the answer that most of them gave; true answers, where known, were only used to measure",
    "offline": "the answer that most responses of the start model gave, never renewed: this is a baseline",
    "truth": "the true answer: this is an oracle, not the method",
    "random": "one of their answers at random: this is a control, not the method",
}
_REWARDS = {  # by judge.rule
    "majority": "Responses whose answer was the label were rewarded. The label was {label}.",
    "vote_share": "Every answer was rewarded by its share of the votes; true answers, where known, were only used to "
    "measure.",
    "gate": "Responses whose answer was the label were rewarded, where the vote was clear. The label was {label}.",
    "negative": "Responses with a rare and uncertain answer were punished, and none was rewarded; true answers, where "
    "known, were only used to measure.",
    "scrl": "Responses whose answer was the label were rewarded, where the vote was clear, and those with a rare and "
    "uncertain answer were punished (SCRL, arXiv 2603.19880). The label was {label}.",
    "guard": "Responses whose answer was the label were rewarded, less where labels had changed from vote to vote "
    "(TTRL-Guard, arXiv 2605.19444). The label was {label}.",
    "best_of": "Responses whose answer was the label were rewarded. The label was the answer of the response that the "
    "model found likeliest; true answers, where known, were only used to measure.",
    "soft": "Responses whose answer was the label were rewarded, the more the clearer the vote was. The label was "
    "{label}.",
    "answered": "Every response that had an answer was rewarded, whatever it was: this is a control, not the method.",
}

_CARD = """---
library_name: {library}
pipeline_tag: text-generation
tags: [ttrl, test-time-reinforcement-learning]
{base}{licence}---

# {name}, after {step} steps of test-time reinforcement learning

This is {name} trained by TTRL (test-time reinforcement learning, [arXiv 2504.16084](https://arxiv.org/abs/2504.16084)):
the model sampled many responses to each question, their answers were rewarded, and the algorithm `{algorithm}` updated
the model. {rewards}

## Use

```python
{load}
{prompt}
print(tokenizer.decode(model.generate(**prompt, max_new_tokens={max_tokens})[0]))
```

FOLDER is this one. The prompt is the one of the run.

## Results

{results}

These are numbers of this one run, on its own questions, with its own prompt and sampling settings (temperature
{temperature}, top-p {top_p}, {samples} responses to each question). They say nothing about other questions. A majority
ratio that rises is agreement, not correctness. Measure before you rely on the model.

{certificate}.

## The run

| | |
|---|---|
| base model | {name} |
| steps | {step} |
{settings}
| seed | {seed} |
| weights | {dtype} |
"""


def card(
    config: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    *,
    certificate: str,
    hub: str | None,
    origin: Mapping[str, Any],
    step: int,
    dtype: str,
    adapters: bool = False,
) -> str:
    """The card as Markdown.

    config: the config of the run. evaluations: those of its history; the card shows the first and the last.
    certificate: what the run's canaries say of this checkpoint (`canary.sentence`). hub: the hub name of the model that
    the run began with, if it has one. origin: what that model says of itself (`huggingface.origin`). adapters: whether
    the folder has the adapters alone, as PEFT stores them.
    """
    path = config["model"]["path"]
    base = hub or origin.get("base_model")
    shares = config["judge"]["rule"] != "majority"  # without a label
    settings = [
        f"| {title} | {_shown(config[section][key])} |"
        for title, section, key in _SETTINGS
        if not (shares and (section, key) == ("reward", "label"))
    ]
    if "no_answer_reward" in config["judge"] and config["judge"]["no_answer_reward"]:
        settings.append(f"| reward of a response without an answer | {config['judge']['no_answer_reward']} |")
    if "lora" in config and config["lora"]["rank"]:
        settings += [f"| {title} | {config['lora'][key]} |" for title, key in _LORA_SETTINGS]
    return _CARD.format(
        library="peft" if adapters else "transformers",
        load=_LOAD_ADAPTERS if adapters else _LOAD,
        base=f"base_model: {base}\n" if base else "",
        licence="".join(f"{name}: {json.dumps(value)}\n" for name, value in origin.items() if name in _LICENCE),
        prompt=_prompt(config["prompt"]),
        max_tokens=config["rollout"]["max_tokens"],
        name=hub or Path(path).name,
        step=step,
        rewards=_REWARDS[config["judge"]["rule"]].format(label=_LABELS[config["reward"]["label"]]),
        algorithm=config["algorithm"],
        results=_table(evaluations),
        certificate=textwrap.fill(certificate[:1].upper() + certificate[1:], 120).rstrip("."),
        temperature=config["eval"]["temperature"],
        top_p=config["eval"]["top_p"],
        samples=config["eval"]["samples"],
        settings="\n".join(settings),
        seed=config["seed"],
        dtype=dtype,
    )


def _prompt(config: Mapping[str, Any]) -> str:
    """The line that makes the prompt of a question."""
    asked = config["prefix"] + "QUESTION" + (config["suffix"] or "")
    if not config["chat_template"]:
        return f'prompt = tokenizer({json.dumps(asked, ensure_ascii=False)}, return_tensors="pt")'
    system = [{"role": "system", "content": config["system"]}] if config["system"] else []
    turns = json.dumps([*system, {"role": "user", "content": asked}], ensure_ascii=False)
    options = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
    return f"prompt = tokenizer.apply_chat_template({turns}, {options})"


def _shown(value: Any) -> Any:
    """Only the name of a path: where files were on the machine of the run says nothing elsewhere."""
    return Path(value).name if isinstance(value, str) else value


def _table(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The first and the last evaluation side by side, of each set of questions that both have."""
    if not evaluations:
        return "No evaluation was made before this checkpoint."
    first, last = evaluations[0], evaluations[-1]
    if len(evaluations) == 1:
        lines = [f"| questions | | after {first['step']} steps |", "|---|---|---|"]
        for key in [key for key in first if key != "step"]:
            title = "trained on" if key == "data" else key.replace("_", " ")
            lines += [f"| {title} | {name} | {x:.3f} |" for name, x in first[key].items()]
        return "\n".join([*lines, "", "It was not evaluated after that."])
    lines = [
        f"| questions | | after {first['step']} steps | after {last['step']} steps |",
        "|---|---|---|---|",
    ]
    for key in [key for key in first if key in last and key != "step"]:
        title = "trained on" if key == "data" else key.replace("_", " ")
        lines += [f"| {title} | {name} | {x:.3f} | {last[key][name]:.3f} |" for name, x in first[key].items()]
    return "\n".join(lines)
