"""
Measure the errors of correct results in budgets of the oracle, from which `lenet.oracle.THRESHOLD` is derived.

`tox run -e calibrate` runs the reference network on thousands of random cases, degenerate ones included, and writes the
distribution of each case's worst `error / budget` to `properties/calibration.json`. The threshold is the power of two
above the worst of all cases. No case is excluded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import mse_loss
from tqdm import tqdm

from lenet import oracle, subject
from lenet.files import write_atomically
from lenet.fingerprint import stamp
from lenet.oracle import PRECISIONS
from properties.case import IMAGE_LAYOUTS, IMAGES, TARGETS, WEIGHTS, Case
from properties.stack import Stack, float64, gradients
from properties.strategies import BATCHES

RESULT = Path(__file__).with_suffix(".json")
LR = 0.1
QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)


def draw(seed: int) -> Case:
    """Return a random case: all recipes are equally likely, larger batches are less likely."""
    random = np.random.RandomState([seed, 3])
    weights, images, targets, layout = (
        choices[random.randint(len(choices))] for choices in (WEIGHTS, IMAGES, TARGETS, IMAGE_LAYOUTS)
    )
    shares = 1 / (1 + np.array(BATCHES))
    batch = int(random.choice(BATCHES, p=shares / shares.sum()))
    return Case(weights, images, targets, batch, layout, seed)


def ratios(stack: Stack, case: Case) -> dict[str, float]:
    """Return the worst error / budget of each tensor: logits, loss, gradients, and parameters after a training step."""
    answer, net = stack.exact(case, with_input_gradient=True), stack.net(case)
    assert answer.input_gradient is not None
    before = {name: float64(p).copy() for name, p in net.named_parameters()}
    images = stack.images(case).requires_grad_()
    logits = net(images)
    loss = mse_loss(logits, stack.targets(case))
    loss.backward()
    got = {"logits": logits, "loss": loss, "images.grad": images.grad}
    got |= {f"{name}.grad": gradient for name, gradient in gradients(net).items()}
    exact = {"logits": answer.logits, "loss": answer.loss, "images.grad": answer.input_gradient}
    exact |= {f"{name}.grad": bounded for name, bounded in answer.gradients.items()}

    stack.subject.train_step(net, stack.images(case), stack.targets(case), LR)
    got |= {f"{name} after a step": parameter for name, parameter in net.named_parameters()}
    after = oracle.updated_parameters(before, answer, LR, stack.precision)
    exact |= {f"{name} after a step": bounded for name, bounded in after.items()}
    return {name: float(exact[name].ratio(float64(got[name])).max(initial=0.0)) for name in got}


def _measure(job: tuple[str, int]) -> tuple[Case, dict[str, float], bool]:
    dtype, seed = job
    torch.set_num_threads(1)
    stack = Stack(subject.load("lenet"), torch.device("cpu"), getattr(torch, dtype))
    case = draw(seed)
    return case, ratios(stack, case), stack.exact(case, with_input_gradient=True).has_undecided


def calibrate(dtype: str, cases: int, first: int) -> dict[str, Any]:
    """Return the distribution over the cases of the seeds first, first + 1, ..., first + cases - 1."""
    jobs = [(dtype, seed) for seed in range(first, first + cases)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        results = list(tqdm(pool.imap_unordered(_measure, jobs, chunksize=16), dtype, total=cases, disable=None))
    results.sort(key=lambda result: -max(result[1].values()))
    names = list(dict.fromkeys(name for _, row, _ in results for name in row))
    columns = {name: [row.get(name, 0.0) for _, row, _ in results] for name in names}
    columns["worst tensor"] = [max(row.values()) for _, row, _ in results]
    return {
        "cases": cases,
        "seeds": [first, first + cases - 1],
        "cases with undecided decisions": sum(undecided for _, _, undecided in results),
        "quantiles": list(QUANTILES),
        "error / budget": {name: np.quantile(column, QUANTILES).round(3).tolist() for name, column in columns.items()},
        "worst cases": [
            {"ratio": round(max(row.values()), 3), "tensor": max(row, key=lambda name: row[name]), "case": repr(case)}
            for case, row, _ in results[:5]
        ],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m properties.calibration", description=__doc__.split("\n\n")[0].strip()
    )
    parser.add_argument("--cases", type=int, default=10_000, help="cases per dtype (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (default %(default)s)")
    parser.add_argument("--dtype", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: all")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where to write the distribution")
    options = parser.parse_args()
    if options.cases < 1:
        parser.error(f"--cases {options.cases}: at least 1 is needed")
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # one thread per worker
    measured = {dtype: calibrate(dtype, options.cases, options.seed) for dtype in options.dtype}
    content = stamp(shlex.join(["python", "-m", "properties.calibration", *sys.argv[1:]])) | {"dtypes": measured}
    with write_atomically(options.output) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
    worst = max(result["error / budget"]["worst tensor"][-1] for result in measured.values())
    print(f"worst error / budget of {options.cases:,} cases per dtype: {worst}; written to {options.output}")


if __name__ == "__main__":
    main()
