"""What only Linux has, and that everything runs without it: on a Linux system from which it is removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lenet import system
from lenet.processes import descendants
from lenet.testing import WITHOUT_LINUX

ROOT = Path(__file__).parents[1]
NOT_PINNED = "processes are not pinned to cores"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


@pytest.fixture
def without_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New Python processes lack what only Linux has."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LINUX)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_linux_has_no_limitations() -> None:
    assert system.timing_limitations() == []
    assert system.process_limitations() == []


def test_process_is_pinned_to_the_cores(sleeper: subprocess.Popen[bytes]) -> None:
    core = system.available_cores()[-1]

    system.pin(sleeper.pid, [core])

    assert os.sched_getaffinity(sleeper.pid) == {core}


def test_process_that_has_ended_is_not_pinned(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()

    system.pin(sleeper.pid, [0])


def test_without_affinity_there_is_one_core_and_nothing_is_pinned(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.sched_getaffinity(sleeper.pid)
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name)

    system.pin(sleeper.pid, [0])

    assert system.available_cores() == [0]
    assert any(NOT_PINNED in line for line in system.timing_limitations())
    monkeypatch.undo()
    assert os.sched_getaffinity(sleeper.pid) == before


def test_without_proc_nothing_raises_and_the_limitations_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")

    assert system.run_queue_wait()() == 0
    assert system.reset_peak_memory() is None
    assert system.boot_id() == ""
    assert system.processor()
    assert list(system.environments()) == []
    assert len(system.timing_limitations()) == 2
    assert len(system.process_limitations()) == 1


def test_clock_of_waiting_time_moves_under_linux() -> None:
    clock = system.run_queue_wait()

    assert 0 <= clock() <= clock()


@pytest.mark.parametrize(
    ("waited", "others", "cores", "foreign"),
    [
        (3.0, 0.0, 1, 3.0),  # another program ran
        (3.0, 3.0, 1, 0.0),  # another thread of this process ran instead
        (3.0, 2.0, 1, 1.0),  # both did
        (0.0, 5.0, 1, 0.0),  # this thread slept meanwhile
        (3.0, 10.0, 2, 3.0),  # the other thread had the other core
        (5.0, 15.0, 2, 0.0),  # four threads of this process shared two cores
        (3.0, 0.0, 2, 3.0),
    ],
)
def test_waiting_for_own_threads_is_not_foreign(waited: float, others: float, cores: int, foreign: float) -> None:
    assert system.foreign_wait(10.0, waited, others, cores) == foreign


def test_peak_memory_is_at_least_what_is_resident() -> None:
    resident = system.reset_peak_memory()

    assert resident is not None
    assert system.peak_memory() >= resident > 2**20


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed")
def test_without_proc_descendants_and_their_commands_come_from_ps(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = descendants()
    assert sleeper.pid in expected

    monkeypatch.setattr(system, "PROC", tmp_path / "proc")

    assert descendants() == expected
    assert system.command_line(sleeper.pid).split() == [b"sleep", b"600"]


def test_without_proc_and_ps_there_are_no_descendants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert descendants() == set()


@pytest.mark.slow
@pytest.mark.usefixtures("without_linux")
def test_laws_are_judged_and_recorded_without_linux_and_the_header_names_the_limitation(tmp_path: Path) -> None:
    law = ["properties/laws/test_forward.py", "-k", "logits_agree", "--device=cpu", "--dtype=float32"]

    result = python(
        "-m", "pytest", "-p", "no:cacheprovider", *law, "--hypothesis-profile=mutants", "--record", str(tmp_path)
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "note: background processes that judged code starts may outlive the run" in result.stdout
    assert [entry["outcome"] for entry in json.loads((tmp_path / "laws.json").read_text())["laws"]] == ["passed"]


@pytest.mark.slow
@pytest.mark.usefixtures("without_linux")
def test_gate_times_unpinned_processes_without_linux_and_says_so(tmp_path: Path) -> None:
    arms = ["--base-subject", "lenet", "--head-subject", "lenet.net"]
    files = ["--json", str(tmp_path / "gate.json"), "--markdown", str(tmp_path / "gate.md")]

    result = python("-m", "lenet_properties", "gate", *arms, "--select", "forward-1", "--budget", "1s", *files)

    assert result.returncode == 3, result.stdout + result.stderr  # one pair is too few
    assert f"note: {NOT_PINNED}" in result.stdout
    assert NOT_PINNED in (tmp_path / "gate.md").read_text()
    record = json.loads((tmp_path / "gate.json").read_text())
    assert len(record["notes"]) == 2
    assert len(record["benchmarks"][0]["pairs"]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("without_linux")
def test_benchmark_is_timed_without_linux(tmp_path: Path) -> None:
    select = ["-m", "benchmark", "-k", "update and manual", "--dtype=float32"]

    result = python("-m", "pytest", "-p", "no:cacheprovider", "benchmarks", *select, "--record", str(tmp_path))

    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"]


@pytest.mark.parametrize(
    ("memberships", "files", "cores", "memory"),
    [
        ("0::/\n", {"cpu.max": "150000 100000", "memory.max": "1048576"}, 1.5, 2**20),
        ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5, None),
        ("0::/a\n", {"unified/a/memory.max": "4096"}, None, 4096),
        (
            "4:memory:/c\n2:cpu,cpuacct:/c\n0::/\n",
            {
                "cpu,cpuacct/c/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/c/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/c/memory.limit_in_bytes": "8192",
            },
            3.0,
            8192,
        ),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
        ("", {}, None, None),
    ],
)
def test_limits_are_the_smallest_of_all_control_groups(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memberships: str,
    files: dict[str, str],
    cores: float | None,
    memory: int | None,
) -> None:
    for name, text in ({f"groups/{name}": text for name, text in files.items()} | {"self/cgroup": memberships}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(system, "PROC", tmp_path)
    monkeypatch.setattr(system, "CGROUPS", tmp_path / "groups")

    assert (system.cpu_limit(), system.memory_limit()) == (cores, memory)


@pytest.mark.parametrize(("limit", "usable"), [(None, 3), (1.5, 2), (0.1, 1), (8.0, 3)])
def test_usable_cores_are_those_of_the_affinity_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, usable: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5})
    monkeypatch.setattr(system, "cpu_limit", lambda: limit)

    assert system.usable_cores() == usable


def test_governors_of_all_processors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for core, governor in enumerate(("powersave\n", "performance\n", "powersave\n")):
        (tmp_path / f"cpu{core}/cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{core}/cpufreq/scaling_governor").write_text(governor)
    monkeypatch.setattr(system, "CPUS", tmp_path)

    assert system.governors() == "performance, powersave"


def test_affinity_is_that_of_the_process() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(cores)})

        assert (system.affinity(), system.usable_cores()) == (str(max(cores)), 1)
    finally:
        os.sched_setaffinity(0, cores)
