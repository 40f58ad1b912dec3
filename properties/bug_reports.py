"""
The stand-alone scripts in `findings/`, one for each known issue, and each as a text to report it with.

A script needs PyTorch alone, or the engine that has the bug. It exits with 1 while the bug is there, with 0 once it is
gone, and with 77 (Automake's code for a skipped test) on a machine that cannot show it. Its docstring is the report.
"""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch.utils import collect_env

FOLDER = Path(__file__).with_name("findings")
SEVERITIES = ("silent wrong numbers", "exception or crash", "surprising")
"""From the worst on; `surprising` is what no documentation mentions, though it may be meant."""

SECTIONS = ("Severity", "Reference", "Searched", "Expected", "Observed", "Cause")
"""The sections of a script's docstring, in their order, after the title in its first line."""

OUTCOMES = {0: "gone", 1: "occurs", 77: "not shown here"}
"""What the exit codes of the scripts mean."""

TIMEOUT = 600
"""Seconds that a script may take: one compiles, which took 70 s on two busy cores."""


@dataclass(frozen=True)
class Finding:
    """A stand-alone script, and what its docstring says."""

    path: Path
    title: str  # that of the known issue
    sections: dict[str, str]
    code: str  # without the docstring

    @property
    def name(self) -> str:
        """The name of the file, without its suffix."""
        return self.path.stem

    @property
    def severity(self) -> str:
        """One of SEVERITIES."""
        return self.sections["Severity"]


@cache
def findings() -> dict[str, Finding]:
    """Return the findings by title. Raises ValueError, with a one-line message, for a docstring of another form."""
    found = map(_read, sorted(FOLDER.glob("*.py")))
    return {finding.title: finding for finding in found}


def _read(path: Path) -> Finding:
    source = path.read_text()
    module = ast.parse(source)
    title, _, rest = (ast.get_docstring(module) or "").partition("\n")
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", rest, flags=re.MULTILINE)
    if tuple(parts[1::2]) != SECTIONS:
        raise ValueError(f"{path}: the docstring has the sections {parts[1::2]}, expected {list(SECTIONS)}")
    texts = [" ".join(text.split()) for text in parts[2::2]]
    code = "\n".join(source.splitlines()[module.body[0].end_lineno or 0 :]).strip()
    return Finding(path, title, dict(zip(SECTIONS, texts, strict=True)), code)


def run(finding: Finding, python: Path | str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run the script by this Python, in a process of its own, and return its exit code and its output."""
    command = [str(python), str(finding.path)]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -signal.SIGKILL, "", f"no result within {TIMEOUT} s")


def outcome(result: subprocess.CompletedProcess[str]) -> str:
    """Return the meaning of a script's exit code, or the error that ended it, such as an API that is missing."""
    if "ModuleNotFoundError" in result.stderr:  # of an engine that is not installed
        return OUTCOMES[77]
    if result.returncode in OUTCOMES and "Traceback" not in result.stderr:
        return OUTCOMES[result.returncode]
    last = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
    return f"error: {last[0]}"


def report(finding: Finding) -> str:
    """Run the script, and return the text of an issue in the form of PyTorch's bug template, as Markdown."""
    result, said = run(finding), finding.sections
    parts = [
        f"# {finding.title}",
        "### 🐛 Describe the bug",
        said["Observed"],
        f"```python\n{finding.code}\n```",
        f"Its output (exit code {result.returncode}):",
        f"```\n{result.stdout.strip()}\n```",
        f"**Expected:** {said['Expected']}",
        f"**Cause:** {said['Cause']}",
        "### Versions",
        f"```\n{collect_env.get_pretty_env_info()}\n```",
    ]
    return "\n\n".join(parts) + "\n"
