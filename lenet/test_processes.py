"""Processes end with the run that started them, also those in sessions of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lenet.testing import holds_soon, is_running

ROOT = Path(__file__).parents[1]


def python(source: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, text=True)


def test_child_ends_when_its_parent_is_killed() -> None:
    start = "subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, preexec_fn=end_with_parent)"
    source = f"import subprocess\nfrom lenet.processes import end_with_parent\nprint({start}.pid, flush=True); input()"
    with python(source) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)

        parent.kill()

    assert holds_soon(lambda: not is_running(child))


SESSIONS = """
import subprocess, sys, time
from lenet.processes import adopt_orphans, descendants, end_descendants
adopt_orphans()
spared = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
before = descendants()
command = "setsid sleep 600 >/dev/null & echo $!"
orphan = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, start_new_session=True).stdout
end_descendants(before)
print(spared.pid, orphan, flush=True)
"""


def test_descendants_in_sessions_of_their_own_are_ended_and_earlier_children_spared() -> None:
    with python(SESSIONS) as process:
        assert process.stdout is not None
        spared, orphan = map(int, process.stdout.readline().split())

    try:
        assert holds_soon(lambda: not is_running(orphan))
        assert is_running(spared)
    finally:
        os.kill(spared, signal.SIGKILL)
