"""How fast a whole training step is, sampling, voting and update: ours, TRL's GRPOTrainer and tunix's GRPO, in turn.

    python scripts/bench_step.py --out step.jsonl --peer-python trl=PYTHON --peer-python tunix=PYTHON

PYTHON is the interpreter of an environment with that peer (`pip install trl torch`, `pip install google-tunix`). A step
is 2 questions, 32 responses of 64 tokens to each (temperature 1, top-p 0.95), the majority's reward, and one optimizer
step on all 64; and, ours alone, the same with 64 votes of which 32 are trained on. bfloat16 are the peers' weights too,
where ours keep float32 masters. Otherwise as bench_rollout.py; tokens are those sampled, useful work is that on the
trained rows. Takes an hour on two cores.
"""

import argparse
import json
from pathlib import Path

from peers import bench

SHAPE = {"prompts": 2, "samples": 32, "micro_rows": 16, "prompt_tokens": 64, "new_tokens": 64}
QUICK = {"prompts": 2, "samples": 2, "micro_rows": 2, "prompt_tokens": 64, "new_tokens": 4}
# prompt_tokens: about, of worker.questions; for the arithmetic and our micro-batches


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtypes", default="float32,bfloat16", help="default: %(default)s")
    flags = bench.parse(__doc__, peers=("trl", "tunix"), parser=parser)
    model, log, sides = bench.model_of(flags.model), bench.Log(flags.out), bench.commands(flags)
    results, repeats = {}, flags.repeats or (2 if flags.quick else 3)
    for dtype in flags.dtypes.split(","):
        for times in (1, 2):
            shape = {"model": Path(flags.model).stem, "dtype": dtype} | (QUICK if flags.quick else SHAPE)
            shape["votes"] = times * shape["samples"]
            prompts, votes, asked, new = (shape[key] for key in ("prompts", "votes", "prompt_tokens", "new_tokens"))
            title = f"{prompts} questions, {votes} votes, {shape['samples']} trained on, {new} tokens, {dtype}"
            print(f"\n{title}", flush=True)
            who = {name: side for name, side in sides.items() if times == 1 or name not in flags.pythons}
            bench.measure("step", shape, who, log, repeats=repeats, matrix_rows=prompts * votes)
            rows = prompts * shape["samples"]
            flops = bench.rollout_flops(model, prompt_tokens=asked, lengths=[[new] * votes] * prompts)
            flops += bench.update_flops(model, rows=rows, prompt_tokens=asked, new_tokens=new)
            results[title] = bench.summary("step", shape, who, log, repeats=repeats, flops=flops)
            print(bench.table(results[title]), flush=True)
    print(json.dumps({"bench": "step", "machine": bench.machine(), "results": results}))


if __name__ == "__main__":
    main()
