"""
The pytest plugin that judges stacks: options, header, Hypothesis profiles, and one run of each law for each stack.

It registers `properties.expectations` (known issues), `properties.record` (entries of a run) and `properties.terminal`
(summary). The repository's conftest.py loads it; elsewhere: `pytest --pyargs properties.laws -p properties.plugin`.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, is_hypothesis_test, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import InvalidArgument
from pytest_timeout import is_debugging
from threadpoolctl import threadpool_limits

from lenet import engines, subject
from lenet.engines import Engine, EngineError
from lenet.engines.eager import disable_tf32
from lenet.files import writable
from lenet.fingerprint import fingerprint, headline
from lenet.oracle import CLAIMS, PRECISIONS
from lenet.processes import adopt_orphans, descendants, end_descendants
from lenet.system import process_limitations
from properties import case, crashes, deviations, drafts, expectations, preconditions, record, skipped_laws, terminal
from properties.case import Case
from properties.deviations import DEVIATIONS, Deviation, DeviationError
from properties.executed import NOT_FOR_ENGINES
from properties.judged_code import EXAMPLE_TIMEOUT, LAWS, LawTimeout, escapes_are_errors, forbid_early_exit, time_limit
from properties.preconditions import Unmet
from properties.reproduce import Reproduction
from properties.stack import Stack, dtype_name
from properties.strategies import only_case, seed_of_examples

DEFAULT_DEVICES = ("cpu", "cuda")
DEFAULT_DTYPES = ("float32", "float64", "bfloat16", "float16")

# No deadline, because an example's duration grows with its batch. One counterexample per law is enough. Every setting
# is given, because Hypothesis replaces its defaults if it detects CI. The target phase searches for examples with large
# errors, which only the profile `thorough` has time for.
PHASES = set(Phase) - {Phase.explain}
COMMON = settings(deadline=None, report_multiple_bugs=False, print_blob=False, phases=PHASES - {Phase.target})
FAILURES = DirectoryBasedExampleDatabase(
    Path(os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis"), "examples")
)
settings.register_profile("quick", COMMON, max_examples=3, derandomize=False, database=FAILURES)
settings.register_profile("ci", COMMON, max_examples=20, derandomize=True, database=None)
settings.register_profile("thorough", COMMON, phases=PHASES, max_examples=250, derandomize=False, database=FAILURES)
UNSHRUNK = settings(COMMON, derandomize=True, database=None, phases={Phase.explicit, Phase.generate})
settings.register_profile("kills", UNSHRUNK, max_examples=20)  # mutants by the laws that they name; examples of `ci`
settings.register_profile("mutants", UNSHRUNK, max_examples=2)  # mutants by all laws; as many as there is time for
settings.load_profile("quick")
PROFILES = ("quick", "ci", "thorough", "kills", "mutants")

SUBJECT_HELP = "module or file.py, either followed by :Name if needed; may be repeated (default: lenet)"
CLAIM_HELP = f"judge the engines at this precision instead of the one that each claims: {', '.join(CLAIMS)}"
REPRO_HELP = "write a stand-alone Python file to this folder for each violated law and stack, and run it once"
CASE_HELP = (
    "draw this case only, as a failure prints it: 'Case(batch=3, ...)'; "
    "a law that draws no Case ignores it, and a law's explicit examples run as well"
)

KNOWN_HELP = "forgive the known deviations in this TOML file; the run fails once one no longer occurs"
SKIP_HELP = "do not run the laws in this file: on each line a name or pattern, and after # the reason"
EXAMPLE_TIMEOUT_HELP = (
    f"an example that takes longer fails its law, {EXAMPLE_TIMEOUT:g} by default, 0 for no limit; "
    "with -n, it is ended also if it does not return to Python, and the run continues"
)
LONGEST_TIMEOUT = 10**6
"""Eleven days; the system's timers take no number of seconds that is much larger than the age of a machine."""

STACKS = pytest.StashKey[list[Stack]]()
CASE = pytest.StashKey[Case | None]()
SKIPPED = pytest.StashKey[dict[str, str]]()
"""The laws that `--skip-laws` lists, each with its reason."""
UNAVAILABLE = pytest.StashKey[list[str]]()
"""Default devices that this machine does not have."""
UNSUPPORTED = pytest.StashKey[list[str]]()
"""A line for each engine that supports none of the stacks."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the options that choose what is judged."""
    _check_configuration(pluginmanager)
    group = parser.getgroup("lenet", "lenet: what is judged")
    known = ", ".join(engines.names())
    group.addoption("--subject", action="append", metavar="SPEC", help=SUBJECT_HELP)
    group.addoption("--engine", metavar="NAMES", help=f"comma-separated, of {known}, or your own as module:function")
    group.addoption("--claim", metavar="PRECISION", choices=CLAIMS, help=CLAIM_HELP)
    group.addoption("--device", metavar="DEVICES", help="comma-separated, such as cpu,cuda; default: those available")
    group.addoption("--dtype", metavar="DTYPES", help=f"comma-separated; default: {','.join(DEFAULT_DTYPES)}")
    group.addoption("--case", metavar="CASE", help=CASE_HELP)
    group.addoption(
        "--example-timeout", type=_seconds, default=EXAMPLE_TIMEOUT, metavar="SECONDS", help=EXAMPLE_TIMEOUT_HELP
    )
    group.addoption("--known", type=Path, metavar="FILE", help=KNOWN_HELP)
    group.addoption(
        "--write-known", type=Path, metavar="FILE", help="write a draft of --known's file after a failed run"
    )
    group.addoption("--skip-laws", type=Path, metavar="FILE", help=SKIP_HELP)
    folder = partial(_folder, "--record")
    group.addoption("--record", type=folder, metavar="DIR", help="write the results to JSON files in this folder")
    group.addoption("--repro", type=partial(_folder, "--repro"), metavar="DIR", help=REPRO_HELP)


def _check_configuration(pluginmanager: pytest.PytestPluginManager) -> None:
    """
    Raise a usage error if the run is configured by a file that pytest has found beside a subject.

    To find its configuration, pytest reads the command line before it knows of `--subject`, and takes the next word for
    the path of a test.
    """
    config: Any = pluginmanager.get_plugin("pytestconfig")
    words, place = config.invocation_params.args, config.invocation_params.dir
    subjects = [place / word for option, word in itertools.pairwise(words) if option == "--subject"]
    ini = config.inipath
    if ini and ini.parent not in (place, *place.parents) and any(ini.parent in path.parents for path in subjects):
        raise pytest.UsageError(f"--subject: pytest has read {ini}; write --subject=PATH, with =, and it does not")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_TIMEOUT:
        raise pytest.UsageError(f"--example-timeout {text}: not a number of seconds from 0 to {LONGEST_TIMEOUT:,}")
    return seconds


def _folder(option: str, text: str) -> Path:
    if not text:
        raise pytest.UsageError(f"{option}: the name of a folder is needed")
    return Path(text)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Build the stacks from the options; every wrong option is a one-line usage error."""
    _check_profile(config.getoption("--hypothesis-profile", None))
    _check_encoding(config)
    config.addinivalue_line("markers", "law: a property that a stack is judged by; every test in properties/laws")
    config.addinivalue_line("markers", "engine: a law about executing a network, by which engines are judged too")
    if not __debug__:
        raise pytest.UsageError("python -O and PYTHONOPTIMIZE remove assertions, by which laws judge: run without them")
    share_cores()
    disable_tf32()
    forbid_early_exit()
    _end_children_with_run(config)
    for option in ("record", "repro"):
        if (folder := config.getoption(option)) and not writable(folder):
            raise pytest.UsageError(f"--{option} {folder}: not a folder that can be written to")
    specs = config.getoption("subject") or [os.environ.get("LENET_SUBJECT") or "lenet"]
    devices, config.stash[UNAVAILABLE] = _devices(config.getoption("device"))
    text, names = config.getoption("case"), config.getoption("engine")
    try:
        subjects = [subject.load(spec) for spec in specs]
        chosen_engines = [] if names is None else [engines.load(name) for name in names.split(",")]
        config.stash[CASE] = None if text is None else case.parse(text)
    except (subject.SubjectError, EngineError) as error:
        raise pytest.UsageError(str(error)) from error
    except ValueError as error:
        raise pytest.UsageError(f"--case: {error}") from error
    config.stash[DEVIATIONS], config.stash[SKIPPED] = _known_deviations(config), _skipped_laws(config)
    option = config.getoption("dtype")
    dtypes = [_dtype(name) for name in (DEFAULT_DTYPES if option is None else option.split(","))]
    stacks = [Stack(s, device, dtype) for s in subjects for device in devices for dtype in dtypes]
    unsupported: list[str] = []
    if chosen_engines:
        stacks, unsupported = _executed_by(chosen_engines, stacks, config.getoption("claim"))
        if not stacks:
            raise pytest.UsageError(f"--engine: there is nothing to judge: {'; '.join(unsupported)}")
    elif config.getoption("claim"):
        raise pytest.UsageError("--claim: applies to engines; name one with --engine")
    config.stash[STACKS], config.stash[UNSUPPORTED] = stacks, unsupported
    config.pluginmanager.register(expectations, "lenet-expectations")
    config.pluginmanager.register(record, "lenet-record")
    config.pluginmanager.register(crashes, "lenet-crash-reports")
    config.pluginmanager.register(terminal, "lenet-terminal")
    if folder := config.getoption("repro"):
        config.pluginmanager.register(Reproduction(folder), "lenet-repro")
    if path := config.getoption("write_known"):
        config.pluginmanager.register(drafts, "lenet-drafts")
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(_draft(path), "lenet-draft")


def _known_deviations(config: pytest.Config) -> list[Deviation]:
    """Return the deviations of `--known`."""
    path = config.getoption("known")
    try:
        return deviations.load(path) if path else []
    except DeviationError as error:
        raise pytest.UsageError(f"--known {error}") from error


def _skipped_laws(config: pytest.Config) -> dict[str, str]:
    path = config.getoption("skip_laws")
    return skipped_laws.load(path) if path else {}


def _draft(path: Path) -> drafts.Draft:
    """Return what writes the draft; a usage error if it could not be written at the end of the run."""
    if path.exists() or path.is_symlink():
        raise pytest.UsageError(f"--write-known {path}: exists already; name another file, or remove it")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise pytest.UsageError(f"--write-known {path}: {path.parent} is not a folder that can be written to")
    return drafts.Draft(path)


def _end_children_with_run(config: pytest.Config) -> None:
    """End the processes that judged code has started when the run ends, as by a signal that would end it at once."""
    adopt_orphans()
    config.add_cleanup(partial(end_descendants, spared=descendants()))
    if not hasattr(config, "workerinput"):
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
                config.add_cleanup(partial(_restore_default, number))


def _check_encoding(config: pytest.Config) -> None:
    """Raise a usage error for an argument that pytest-xdist cannot send to parallel workers."""
    for word in config.invocation_params.args if config.getoption("numprocesses", None) else ():
        if word != word.encode(errors="replace").decode():
            raise pytest.UsageError(f"-n: {word!a} is not UTF-8, as parallel workers need it: run without -n")


def _restore_default(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)


def _check_profile(name: str | None) -> None:
    """Raise a usage error if Hypothesis has no profile of this name; its own error would be a traceback."""
    if name is None:
        return
    try:
        settings.get_profile(name)
    except InvalidArgument as error:
        raise pytest.UsageError(f"--hypothesis-profile {name}: not one of {', '.join(PROFILES)}") from error


def _executed_by(chosen: list[Engine], stacks: list[Stack], claim: str | None) -> tuple[list[Stack], list[str]]:
    """Return the stacks that each engine supports, with that engine, and a line for each engine that supports none."""
    executed, unsupported = [], []
    for engine in chosen:
        supported = [stack for stack in stacks if engine.supports(stack.device.type, dtype_name(stack.dtype))]
        if not supported:
            dtypes, devices = ", ".join(engine.claims), ", ".join(engine.devices)
            unsupported.append(f"{engine.name} supports only {dtypes} on {devices}")
        executed += [replace(stack, engine=engine, claim=claim) for stack in supported]
    return executed, unsupported


def share_cores() -> None:
    """Divide the CPU cores among pytest-xdist's workers."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        threadpool_limits(threads)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Print versions and hardware, what is judged, and what is not."""
    stacks = config.stash[STACKS]
    lines = [f"versions: {headline(fingerprint())}"]
    for label in dict.fromkeys(stack.label for stack in stacks):
        own = [stack for stack in stacks if stack.label == label]
        devices = ", ".join(dict.fromkeys(str(stack.device) for stack in own))
        dtypes = ", ".join(dict.fromkeys(dtype_name(stack.dtype) for stack in own))
        lines.append(f"judging: {label} on {devices} in {dtypes}")
    lines += [f"not judged: {device} is not available" for device in config.stash[UNAVAILABLE]]
    unedited = [d.place for d in config.stash[DEVIATIONS] if d.title.startswith("TODO")]
    lines += [f"note: {place}: its reason is still TODO" for place in unedited]
    unused = [d.place for d in config.stash[DEVIATIONS] if not any(map(d.affects.matches, stacks))]
    lines += [f"not used: {place}: no stack that is judged is one of its `stacks`" for place in unused]
    lines += [f"not judged: {unsupported}" for unsupported in config.stash[UNSUPPORTED]]
    lines += [f"note: {limitation}" for limitation in process_limitations()]
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run whatever has a parameter `stack` once for each stack; an unavailable default device is a visible skip."""
    if "stack" not in metafunc.fixturenames:
        return
    stacks = [
        pytest.param(s, id=f"{s.label.replace(' by ', '-')}-{s.device}-{dtype_name(s.dtype)}")
        for s in metafunc.config.stash[STACKS]
    ]
    skipped = [
        pytest.param(None, id=device, marks=pytest.mark.skip(reason=f"{device} is not available"))
        for device in metafunc.config.stash[UNAVAILABLE]
    ]
    metafunc.parametrize("stack", stacks + skipped, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Mark every test in `properties/laws` as a law, and order the items so that one law after another judges all stacks.

    Warnings that a subject raises are not errors.
    """
    for item in items:
        if LAWS in item.path.parents:
            item.add_marker("law")
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("default"))
        if item.get_closest_marker("law"):
            skipped_laws.mark(item, config.stash[SKIPPED])
            _mark_engine(item)
    if any(item.get_closest_marker("law") for item in items):
        make_deterministic()
    positions = {key: n for n, key in enumerate(dict.fromkeys(map(_without_stack, items)))}
    items.sort(key=lambda item: positions[_without_stack(item)])


def make_deterministic() -> None:
    """Choose deterministic kernels on the GPU: some laws compare two backward passes bit for bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True


def _without_stack(item: pytest.Item) -> tuple[str, str]:
    """
    Return the item's function and its parameters other than the stack. Items that agree in both draw the same examples.

    If they run consecutively, stacks of one dtype share the oracle's cached answers.
    """
    others = {name: getattr(v, "__name__", repr(v)) for name, v in _parameters(item).items() if name != "stack"}
    return item.nodeid.partition("[")[0], str(others)


def _mark_engine(item: pytest.Item) -> None:
    """
    Skip a law that does not apply to engines if an engine is judged.

    All laws of one engine and dtype form one group for `pytest -n ... --dist loadgroup`: one process compiles for all.
    """
    stack = _parameters(item).get("stack")
    if stack and stack.engine:
        item.add_marker(pytest.mark.xdist_group(f"{stack.engine.name} in {dtype_name(stack.dtype)}"))
        if not item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.skip(reason=NOT_FOR_ENGINES))


def _parameters(item: pytest.Item) -> dict[str, Any]:
    """Return the values of the item's parameters by name; empty if it has none."""
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """
    Run the item with the stack's replacements and settings installed, and with the case of `--case` if given.

    A law draws only cases that the subject's network can run.
    """
    stack = _parameters(item).get("stack")
    number = None
    if isinstance(item, pytest.Function) and stack and settings().derandomize:
        number = _seed_of_examples(item, stack)
        if is_hypothesis_test(item.obj):
            seed(number)(item.obj)
    installed = stack.installed() if stack else nullcontext()
    with _judging(item), installed, only_case(item.config.stash[CASE]), seed_of_examples(number):
        unmet = _unmet_preconditions(stack) if stack and item.get_closest_marker("law") else {}
        with preconditions.restricted(unmet) as restrictions:
            item.stash[record.RESTRICTIONS] = restrictions
            return (yield)


@contextmanager
def _judging(item: pytest.Item) -> Iterator[None]:
    """Within this block, whatever judged code raises is a failure, and `--timeout` limits a law."""
    __tracebackhide__ = True
    if not item.get_closest_marker("law"):
        yield
        return
    try:
        with escapes_are_errors(), time_limit(item.stash.get(record.SECONDS, None), _example_limit(item.config)):
            yield
    except LawTimeout as error:
        raise pytest.fail.Exception(str(error)).with_traceback(error.__traceback__) from None


def _example_limit(config: pytest.Config) -> float | None:
    """Return the time limit of an example; None if there is none, or if somebody debugs this process."""
    seconds: float = config.getoption("example_timeout")
    return seconds if seconds and not is_debugging() else None


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Have a law's time limit end it for good: Hypothesis would repeat the example without one."""
    if settings.method != "signal" or not item.get_closest_marker("law"):
        return None
    item.stash[record.SECONDS] = settings.timeout
    return True


def _unmet_preconditions(stack: Stack) -> Unmet:
    """Return what the subject's network cannot do; an error if trying it has stopped the GPU."""
    expectations.assert_device_works(stack)
    try:
        return preconditions.unmet_preconditions(stack)
    except RuntimeError as error:
        expectations.note_stopped_device(stack, error)
        raise


def _seed_of_examples(item: pytest.Function, stack: Stack) -> int:
    """
    Return the seed of a law's examples: the same for every subject, engine and device, and however the law is worded.

    Hypothesis would derive it from the test's id, which contains the subject, and from its source with the docstring.
    """
    return zlib.crc32(f"{item.originalname} {_without_stack(item)[1]} {dtype_name(stack.dtype)}".encode())


def _devices(option: str | None) -> tuple[list[torch.device], list[str]]:
    """Return the available devices and the names of unavailable defaults; an unavailable named device is an error."""
    available, unavailable = [], []
    for name in DEFAULT_DEVICES if option is None else option.split(","):
        try:
            device = torch.device(name)
            torch.ones(1, device=device).cpu()
            available.append(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            if option is not None:
                reason = str(error).strip().splitlines()[0]
                raise pytest.UsageError(f"--device {name}: not available ({reason})") from error
            unavailable.append(name)
    return available, unavailable


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if name in PRECISIONS and isinstance(dtype, torch.dtype):
        return dtype
    known = ", ".join(name for name in PRECISIONS if hasattr(torch, name))
    raise pytest.UsageError(f"--dtype {name}: not one of {known}")
