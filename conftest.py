"""How pytest runs here: the options that say what is judged, the run's header, and Hypothesis's profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from threadpoolctl import threadpool_limits

from lenet import engines, subject
from lenet.engines import Engine, EngineError
from lenet.engines.eager import compute_as_claimed
from lenet.files import writable
from lenet.fingerprint import fingerprint, headline
from lenet.oracle import CLAIMS, PRECISIONS
from properties import case, strategies
from properties.executed import NOT_ABOUT_RUNNING
from properties.stack import Stack, name_of

DEFAULT_DEVICES = ("cpu", "cuda")
DEFAULT_DTYPES = ("float32", "float64", "bfloat16", "float16")

# A case takes as long as its batch is large, so there is no deadline; one counterexample a law is enough. All is
# written out, because Hypothesis takes what is not from a profile of its own where it finds itself in CI. Examples that
# press on the budget are sought where there is time for it.
SEARCH = set(Phase) - {Phase.explain}
COMMON = settings(deadline=None, report_multiple_bugs=False, print_blob=False, phases=SEARCH - {Phase.target})
FAILURES = DirectoryBasedExampleDatabase(".hypothesis/examples")
settings.register_profile("quick", COMMON, max_examples=10, derandomize=False, database=FAILURES)
settings.register_profile("ci", COMMON, max_examples=20, derandomize=True, database=None)
settings.register_profile("thorough", COMMON, phases=SEARCH, max_examples=250, derandomize=False, database=FAILURES)
KILL = settings(COMMON, derandomize=True, database=None, phases={Phase.explicit, Phase.generate})  # nothing is reduced
settings.register_profile("kills", KILL, max_examples=20)  # of a mutant by the law that it names: the examples of ci
settings.register_profile("mutants", KILL, max_examples=2)  # by all laws: as many as there is time for
settings.load_profile("quick")

STACKS = pytest.StashKey[list[Stack]]()
ABSENT = pytest.StashKey[list[str]]()
UNFIT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lenet", "what is judged")
    group.addoption("--subject", action="append", metavar="SPEC", help="package.module, file.py, either with :Name")
    group.addoption("--engine", metavar="NAMES", help=f"comma-separated, of {', '.join(engines.names())}, or one's own")
    group.addoption("--claim", metavar="PRECISION", choices=CLAIMS, help="judge the engines by this precision instead")
    group.addoption("--device", metavar="DEVICES", help="comma-separated, such as cpu,cuda; default: what is there")
    group.addoption("--dtype", metavar="DTYPES", help="comma-separated, such as float32,bfloat16")
    group.addoption("--case", metavar="CASE", help="judge this one case, as a failure printed it: 'Case(batch=3, ...)'")
    group.addoption("--record", type=Path, metavar="DIR", help="write what was found to JSON files in this folder")


def pytest_configure(config: pytest.Config) -> None:
    share_cores()
    compute_as_claimed()
    dtypes = config.getoption("dtype")
    folder = config.getoption("record")
    if folder and not writable(folder):
        raise pytest.UsageError(f"--record {folder}: not a folder that can be written to")
    specs = config.getoption("subject") or [os.environ.get("LENET_SUBJECT") or "lenet"]
    devices, absent = _devices(config.getoption("device"))
    try:
        subjects = [subject.load(spec) for spec in specs]
        runners = [engines.load(name) for name in (config.getoption("engine") or "").split(",") if name]
        if text := config.getoption("case"):
            strategies.only = case.parse(text)
    except (subject.SubjectError, EngineError) as error:
        raise pytest.UsageError(str(error)) from error
    except ValueError as error:
        raise pytest.UsageError(f"--case: {error}") from error
    chosen = [_dtype(name) for name in (DEFAULT_DTYPES if dtypes is None else dtypes.split(","))]
    config.stash[ABSENT], config.stash[UNFIT] = absent, []
    config.stash[STACKS] = [Stack(s, device, dtype) for s in subjects for device in devices for dtype in chosen]
    if runners:
        config.stash[STACKS], unfit = _run_by(runners, config.stash[STACKS], config.getoption("claim"))
        config.stash[UNFIT] = unfit
        if not config.stash[STACKS]:
            raise pytest.UsageError(f"--engine: nothing is to be judged: {'; '.join(unfit)}")
    elif config.getoption("claim"):
        raise pytest.UsageError("--claim: is of engines; name one with --engine")


def _run_by(runners: list[Engine], stacks: list[Stack], claim: str | None) -> tuple[list[Stack], list[str]]:
    """Those of the stacks that each engine runs, and a line about each engine that runs none."""
    chosen, unfit = [], []
    for engine in runners:
        own = [stack for stack in stacks if engine.takes(stack.device.type, name_of(stack.dtype))]
        if not own:
            unfit.append(f"{engine.name} takes {', '.join(engine.claims)} on {', '.join(engine.devices)}")
        chosen += [replace(stack, engine=engine, claim=claim) for stack in own]
    return chosen, unfit


def share_cores() -> None:
    """Keep parallel workers from taking each other's cores."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        threadpool_limits(threads)


def pytest_report_header(config: pytest.Config) -> list[str]:
    stacks = config.stash[STACKS]
    lines = [f"stack: {headline(fingerprint())}"]
    for name in dict.fromkeys(stack.who for stack in stacks):
        own = [stack for stack in stacks if stack.who == name]
        devices = ", ".join(dict.fromkeys(str(stack.device) for stack in own))
        dtypes = ", ".join(dict.fromkeys(name_of(stack.dtype) for stack in own))
        lines.append(f"judging: {name} on {devices} in {dtypes}")
    lines += [f"not judged: {device}, which is not there" for device in config.stash[ABSENT]]
    lines += [f"not judged: {unfit}" for unfit in config.stash[UNFIT]]
    return lines


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Mark what judges a stack, and is no benchmark, as a law, and have all stacks judged by one law after the other.

    What a user's code warns of is no violation.
    """
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "stack" in names:
            item.add_marker(pytest.mark.filterwarnings("default"))
            if "benchmark" not in names:
                item.add_marker("law")
                _by_engine(item)
    places = {place: n for n, place in enumerate(dict.fromkeys(map(_place, items)))}
    items.sort(key=lambda item: places[_place(item)])


def _place(item: pytest.Item) -> tuple[str, str]:
    """
    A law with its parameters but the stack: all that has the same draws the same examples.

    Judged one after the other, the stacks of one dtype share the oracle's answers to them.
    """
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    others = {name: value for name, value in parameters.items() if name != "stack"}
    return item.nodeid.partition("[")[0], repr(others)


def _by_engine(item: pytest.Item) -> None:
    """Of an engine, leave out the laws that are about something else; one process compiles for all the others."""
    stack = item.callspec.params["stack"] if isinstance(item, pytest.Function) else None
    if stack and stack.engine:
        item.add_marker(pytest.mark.xdist_group(f"{stack.engine.name} in {name_of(stack.dtype)}"))
        if not item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.skip(reason=NOT_ABOUT_RUNNING))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever takes a `stack` runs once for each that is judged; a device that is not there is a visible skip."""
    if "stack" not in metafunc.fixturenames:
        return
    stacks = metafunc.config.stash[STACKS]
    present = [pytest.param(s, id=f"{s.who.replace(' by ', '-')}-{s.device}-{name_of(s.dtype)}") for s in stacks]
    skipped = [
        pytest.param(None, id=device, marks=pytest.mark.skip(reason=f"{device} is not there"))
        for device in metafunc.config.stash[ABSENT]
    ]
    metafunc.parametrize("stack", present + skipped, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a subject replaces of PyTorch, and what an engine sets, is so while it is judged."""
    stack = (
        item.callspec.params.get("stack") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    )
    with stack.installed() if stack else nullcontext():
        return (yield)


def _devices(option: str | None) -> tuple[list[torch.device], list[str]]:
    """The devices to judge, and those left out: a default may be absent, what was asked for by name may not."""
    present, absent = [], []
    for name in DEFAULT_DEVICES if option is None else option.split(","):
        try:
            device = torch.device(name)
            torch.ones(1, device=device).cpu()
            present.append(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            if option is not None:
                reason = str(error).strip().splitlines()[0]
                raise pytest.UsageError(f"--device {name}: there is no such device ({reason})") from error
            absent.append(name)
    return present, absent


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if name in PRECISIONS and isinstance(dtype, torch.dtype):
        return dtype
    known = ", ".join(name for name in PRECISIONS if hasattr(torch, name))
    raise pytest.UsageError(f"--dtype {name}: not one of {known}")
