"""How fast responses are sampled: ours, Hugging Face `generate` on torch and tunix's sampler, in turn on one machine.

    python scripts/bench_rollout.py --out rollout.jsonl --peer-python hf=PYTHON --peer-python tunix=PYTHON

PYTHON is the interpreter of an environment with that peer (`pip install transformers torch`, `pip install google-tunix`
with the jax that we use); a peer without one is left out. Each side loads, compiles and warms up once for each shape,
then all run in turn. The same command again goes on where it was stopped. Prints a table for each shape, and JSON in
the last line: medians, and the median of the ratios of the pairs. With all shapes it takes hours on two cores;
--shapes, --dtypes and --draws take some of them. docs/benchmarks.md has results and says what the columns are.
"""

import argparse
import json
import random
from pathlib import Path

from peers import bench

PROMPT_TOKENS = 64
# prompts, samples of each, the limit of tokens, rows decoded at once. "long": lengths with a long tail, the median a
# fifth of the limit; else every response has as many tokens as the limit.
SHAPES = {"one": (1, 64, 64, 512), "eight": (8, 64, 64, 512), "long": (2, 64, 256, 32)}
QUICK = {"one": (1, 4, 8, 512), "eight": (2, 4, 8, 512), "long": (2, 4, 16, 4)}
DRAWS = {"sample": 0.95, "greedy": 1.0, "plain": 1.0}  # top-p; plain is sampling without a filter


def lengths(name: str, prompts: int, votes: int, limit: int) -> list[list[int]]:
    """Tokens of each response."""
    if name != "long":
        return [[limit] * votes] * prompts
    rng = random.Random(0)
    return [
        [max(1, min(limit, round(rng.lognormvariate(0, 1) * limit / 5))) for _ in range(votes)] for _ in range(prompts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="one,eight,long", help="of one, eight, long; default: %(default)s")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="default: %(default)s")
    parser.add_argument("--draws", default="sample,greedy", help="of sample, greedy, plain; default: %(default)s")
    flags = bench.parse(__doc__, peers=("hf", "tunix"), parser=parser)
    model, log, sides = bench.model_of(flags.model), bench.Log(flags.out), bench.commands(flags)
    results = {}
    for name in flags.shapes.split(","):
        prompts, votes, limit, rows = (QUICK if flags.quick else SHAPES)[name]
        repeats = flags.repeats or (2 if flags.quick else 5 if prompts == 1 else 3)
        for dtype in flags.dtypes.split(","):
            for draw in flags.draws.split(","):
                shape = {
                    "model": Path(flags.model).stem,
                    "lengths": name,
                    "prompts": prompts,
                    "votes": votes,
                    "prompt_tokens": PROMPT_TOKENS,
                }
                shape |= {"new_tokens": limit, "rows": rows, "dtype": dtype, "draw": draw, "top_p": DRAWS[draw]}
                asked = lengths(name, prompts, votes, limit)
                title = f"{prompts} x {votes} responses of {'up to ' * (name == 'long')}{limit} tokens, {dtype}, {draw}"
                print(f"\n{title}", flush=True)
                extra = {"asked": asked, "matrix_rows": min(rows, prompts * votes)}
                bench.measure("rollout", shape, sides, log, repeats=repeats, **extra)
                flops = bench.rollout_flops(model, prompt_tokens=PROMPT_TOKENS, lengths=asked)
                results[title] = bench.summary("rollout", shape, sides, log, repeats=repeats, flops=flops)
                print(bench.table(results[title]), flush=True)
    print(json.dumps({"bench": "rollout", "machine": bench.machine(), "results": results}))


if __name__ == "__main__":
    main()
