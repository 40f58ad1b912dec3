"""The sentences that sum up a run: its verdict, its evidence, its speed, and what the gate measured."""

from __future__ import annotations

from reports.laws import LawResults, total_forgiven
from reports.run import Run
from reports.verdict import COMMIT, parts, slowdown


def verdict(run: Run) -> str:
    """One sentence with the stack and what every file of the run says about it; no names from a user."""
    devices = [name for name in ("CPU", "CUDA") if any(f" on {name.lower()}" in stack for stack in run.laws.stacks)]
    gpu = [run.stack["GPU"]] if "CUDA" in devices and "GPU" in run.stack else []
    machine = ", ".join([*gpu, run.stack["processor"], f"{run.stack['cores']} cores"])
    found = "; ".join(part.text for part in parts(run) if part.text)
    return f"PyTorch {run.torch_version} ({' and '.join(devices)}) on {machine}: {found}."


def evidence(run: Run) -> str:
    """The number of judged examples and the worst error in budgets, of the subject and of its engines."""
    found = _evidence(run.laws, run.threshold)
    return found if not run.engines else f"{found} On engines, {_evidence(run.engines, run.threshold)}"


def _evidence(results: LawResults, threshold: float) -> str:
    examples, partly_judged = (
        sum(getattr(law, name) for law in results.laws) for name in ("examples", "partly_judged")
    )
    forgiven = total_forgiven(results.laws)
    apart = [f"{partly_judged:,} only in part"] if partly_judged else []
    if forgiven is None:
        apart.append("the number with a known issue forgiven was not recorded")
    elif forgiven:
        apart.append(f"{forgiven:,} with a known issue forgiven")
    if deviating := sum(law.deviating for law in results.laws):
        apart.append(f"{deviating:,} with a known deviation forgiven")
    counts = f"{examples:,} examples were judged" + (f" ({', '.join(apart)})" if apart else "")
    worst = max((law.worst_ratio for law in results.laws), default=0.0)
    return f"{counts}; the worst error is {worst:.2g} of the {threshold:g} allowed budgets."


def speed(run: Run) -> str:
    """One sentence with the highest throughput of a training step."""
    best = run.fastest("training step")
    if not best:
        return "No training step was timed."
    return f"A training step reaches {best.throughput:,.0f} images/s ({best.setting}, batch size {best.batch})."


def slowdowns(run: Run) -> str:
    """One sentence with the slowdown of each benchmark of the gate; empty if the gate timed none."""
    lines = [f"{one['name']} {slowdown(run.gate, one)}" for one in run.gate_benchmarks] if run.gate else []
    return f"{'; '.join(lines)}." if lines else ""


def compared(run: Run) -> str:
    """What the gate compared; the subject of a commit is in quotes."""
    return "; ".join(COMMIT.sub(r' at \1 "\2"', line) for line in run.gate["compared"]) if run.gate else ""


def project(run: Run) -> str:
    """The version of this project that wrote the verdicts, its commit, and whether its files differed from that."""
    commit = f", commit {run.project['commit']}" if "commit" in run.project else ""
    changed = ", with uncommitted changes" if run.project.get("dirty") else ""
    return f"{run.project['version']}{commit}{changed}"
