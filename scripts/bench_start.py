"""How long a shell waits for the first responses: ours with an empty and with a filled compile cache, and Hugging Face.

    python scripts/bench_start.py --out start.jsonl --peer-python hf=PYTHON

From starting the process to 8 responses of 4 tokens in float32. The cache is JAX's own, a folder named by
JAX_COMPILATION_CACHE_DIR; a new one for each cold start, the same for the warm one after it. Takes minutes.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

from peers import bench

SHAPE = {"lengths": "start", "prompts": 1, "votes": 8, "prompt_tokens": 64, "new_tokens": 4, "rows": 8}
SHAPE |= {"dtype": "float32", "draw": "sample", "top_p": 0.95}


def main() -> None:
    flags = bench.parse(__doc__, peers=("hf",))
    log, commands = bench.Log(flags.out), bench.commands(flags)
    shape = SHAPE | {"model": Path(flags.model).stem}
    repeats = flags.repeats or 3
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            with_cache = {"JAX_COMPILATION_CACHE_DIR": cache}
            starts = [("ours, cold", bench.OURS, with_cache), ("ours, warm", bench.OURS, with_cache)]
            if flags.before:
                with_own = {"JAX_COMPILATION_CACHE_DIR": str(Path(cache) / bench.BEFORE)}
                starts += [(f"{bench.BEFORE}, {way}", bench.BEFORE, with_own) for way in ("cold", "warm")]
            starts += [(name, name, {}) for name in flags.pythons]
            if all(repeat in log.find("start", shape, label) for label, _, _ in starts):
                continue
            for label, side, environment in starts:
                begun = time.perf_counter()
                worker = bench.Worker(side, commands[side], flags.out, environment)
                worker.prepare("rollout", shape | {"asked": [[shape["new_tokens"]] * shape["votes"]]})
                seconds = time.perf_counter() - begun
                worker.close()
                log.add({"bench": "start", "shape": shape, "side": label, "repeat": repeat, "seconds": seconds})
                print(f"{repeat + 1}: {label} {seconds:.1f} s", flush=True)
    sides = dict.fromkeys(record["side"] for record in log.records if record["bench"] == "start")
    seconds = {side: [run["seconds"] for run in log.find("start", shape, side).values()] for side in sides}
    print(f"\n{'':12}{'seconds':>9}{'lowest':>9}{'highest':>9}")
    for side, of in seconds.items():
        print(f"{side:12}{statistics.median(of):>9.1f}{min(of):>9.1f}{max(of):>9.1f}")
    medians = {side: round(statistics.median(of), 2) for side, of in seconds.items()}
    print(json.dumps({"bench": "start", "machine": bench.machine(), "seconds": medians}))


if __name__ == "__main__":
    main()
