"""How fast the update is: ours against the training step of TRL's GRPOTrainer, on the same rows, in turn.

    python scripts/bench_update.py --out update.jsonl --peer-python trl=PYTHON

PYTHON is the interpreter of an environment with TRL (`pip install trl torch`). One optimizer step on 64 rows of random
tokens, 64 of the prompt and 64 of the response, 32 rows at a time, without a KL term and without recomputing layers.
Ours includes the pass that takes the old log-probs, where TRL needs none. Otherwise as bench_rollout.py; tokens are
those of the whole rows. Takes about 15 minutes on two cores.
"""

import argparse
import json
from pathlib import Path

from peers import bench

SHAPE = {"prompts": 2, "votes": 32, "samples": 32, "micro_rows": 16, "prompt_tokens": 64, "new_tokens": 64}
QUICK = {"prompts": 2, "votes": 2, "samples": 2, "micro_rows": 2, "prompt_tokens": 8, "new_tokens": 8}
MOST_MATRIX_ROWS = (
    1024  # for the dots that are compared with: their products of more rows would not fit a small machine
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtypes", default="float32,bfloat16", help="default: %(default)s")
    flags = bench.parse(__doc__, peers=("trl",), parser=parser)
    model, log, sides = bench.model_of(flags.model), bench.Log(flags.out), bench.commands(flags)
    results, repeats = {}, flags.repeats or (2 if flags.quick else 5)
    for dtype in flags.dtypes.split(","):
        shape = {"model": Path(flags.model).stem, "dtype": dtype} | (QUICK if flags.quick else SHAPE)
        rows, length = shape["prompts"] * shape["samples"], shape["prompt_tokens"] + shape["new_tokens"]
        title = f"one optimizer step on {rows} rows of {length} tokens, {dtype}"
        print(f"\n{title}", flush=True)
        matrix_rows = min(MOST_MATRIX_ROWS, shape["micro_rows"] * length)
        bench.measure("update", shape, sides, log, repeats=repeats, matrix_rows=matrix_rows)
        counts = {name: shape[name] for name in ("prompt_tokens", "new_tokens")}
        flops = bench.update_flops(model, rows=rows, **counts)
        results[title] = bench.summary("update", shape, sides, log, repeats=repeats, flops=flops)
        print(bench.table(results[title]), flush=True)
    print(json.dumps({"bench": "update", "machine": bench.machine(), "results": results}))


if __name__ == "__main__":
    main()
