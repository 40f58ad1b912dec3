"""
How far correct results lie from the oracle: the measurement behind `lenet.oracle.THRESHOLD`.

`python -m properties.calibration` runs the reference Net over thousands of random cases, degenerate and ordinary alike,
and writes the distribution of each case's worst `error / budget` to `properties/calibration.json`. The threshold is the
power of two above the worst of all. Every case counts; none is passed over.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lenet import subject
from lenet.files import write_atomically
from lenet.fingerprint import fingerprint
from properties.stack import Stack, float64, gradients
from properties.strategies import BATCHES, IMAGES, LAYOUTS, TARGETS, WEIGHTS, Case

RESULT = Path(__file__).with_suffix(".json")
QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)


def draw(seed: int) -> Case:
    """A case of equally likely recipes."""
    random = np.random.RandomState([seed, 3])
    weights, images, targets, layout = (
        choices[random.randint(len(choices))] for choices in (WEIGHTS, IMAGES, TARGETS, LAYOUTS)
    )
    return Case(weights, images, targets, BATCHES[random.randint(len(BATCHES))], layout, seed)


def ratios(stack: Stack, case: Case) -> dict[str, float]:
    """The worst error / budget of each tensor: logits, loss, and the ten gradients."""
    answer = stack.exact(case)
    net = stack.net(case)
    loss = stack.loss(net, case)
    loss.backward()
    got = {"logits": net(stack.images(case)), "loss": loss} | gradients(net)
    bounded = {"logits": answer.logits, "loss": answer.loss} | answer.gradients
    return {name: float(bounded[name].ratio(float64(got[name])).max(initial=0.0)) for name in bounded}


def _measure(job: tuple[str, int]) -> tuple[Case, dict[str, float], bool]:
    dtype, seed = job
    torch.set_num_threads(1)
    stack = Stack(subject.load("lenet"), torch.device("cpu"), getattr(torch, dtype))
    case = draw(seed)
    return case, ratios(stack, case), stack.exact(case).undecided


def calibrate(dtype: str, cases: int, first: int) -> dict[str, Any]:
    """The distribution over the cases of the seeds first, first + 1, ..."""
    jobs = [(dtype, seed) for seed in range(first, first + cases)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        results = list(tqdm(pool.imap_unordered(_measure, jobs, chunksize=16), dtype, total=cases, disable=None))
    results.sort(key=lambda result: -max(result[1].values()))
    columns = {name: [row[name] for _, row, _ in results] for name in results[0][1]}
    columns["worst of all"] = [max(row.values()) for _, row, _ in results]
    return {
        "cases": cases,
        "seeds": [first, first + cases - 1],
        "with decisions that rounding could turn": sum(undecided for _, _, undecided in results),
        "quantiles": list(QUANTILES),
        "error / budget": {name: np.quantile(column, QUANTILES).round(3).tolist() for name, column in columns.items()},
        "worst cases": [
            {"ratio": round(max(row.values()), 3), "tensor": max(row, key=lambda name: row[name]), "case": repr(case)}
            for case, row, _ in results[:5]
        ],
    }


def main() -> None:
    """Calibrate as the options say, and write the result beside this file."""
    parser = argparse.ArgumentParser(prog="python -m properties.calibration", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=20_000, help="cases a dtype (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first case's seed (default %(default)s)")
    parser.add_argument("--dtype", default="float32,float64,bfloat16", help="default %(default)s")
    options = parser.parse_args()
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # one thread a worker
    measured = {dtype: calibrate(dtype, options.cases, options.seed) for dtype in options.dtype.split(",")}
    with write_atomically(RESULT) as file:
        file.write(json.dumps({"stack": fingerprint(), "dtypes": measured}, indent=1).encode() + b"\n")
    worst = max(result["error / budget"]["worst of all"][-1] for result in measured.values())
    print(f"worst error / budget of {options.cases:,} cases a dtype: {worst}; written to {RESULT}")


if __name__ == "__main__":
    main()
