"""
A first draft of a file of known deviations, of all that failed in a run (`--write-known FILE`).

After a law has failed, its examples are run once more, and whatever goes wrong in them is forgiven and noted. The draft
therefore has every symptom that the law shows, not only that of its counterexample.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lenet.table import plural
from properties import arguments
from properties.comparison import Mask, MismatchError
from properties.deviations import PREDICATES
from properties.entries import reason_not_judged
from properties.expectations import counted_law, expect_known_issues
from properties.judged_code import LawTimeout
from properties.known_issues import ExpectedFailure
from properties.ledger import Ledger, current_ledger, recording
from properties.record import PROPERTY, Entry, current_drawn
from properties.stack import dtype_name

DRAFT = "draft"
"""The name under which a report's user_properties hold what was noted about a law."""

NOTED = pytest.StashKey[dict[str, Any]]()
"""What was noted about an item."""

NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
"""A number in a message, or in a tensor's name after a space: it may be another one in the next example."""

ANYTHING = ExpectedFailure("", {}, lambda drawn: True, ())

INTRODUCTION = """\
# A draft by --write-known. For each deviation, state the reason, and narrow the symptoms to what you know.
# The laws are run with --known FILE; the README of properties/ has the format.
"""


@dataclass
class Noting(Ledger):
    """A ledger that forgives everything that no known issue explains, and notes it."""

    tensors: dict[str, list[tuple[MismatchError, Mask]]] = field(default_factory=dict)
    errors: dict[tuple[str, str], None] = field(default_factory=dict)

    def explained(self, mismatch: MismatchError) -> Mask:
        """Return all wrong elements."""
        rest = mismatch.wrong & ~super().explained(mismatch)
        if rest.any():
            self.tensors.setdefault(_pattern(mismatch.tensor, r"(?<= )\d+"), []).append((mismatch, rest))
        return mismatch.wrong

    def explaining(self, error: BaseException, arguments: Mapping[str, Any]) -> list[ExpectedFailure]:
        """Return what explains the error: if no known issue does, anything."""
        if known := super().explaining(error, arguments):
            return known
        line = next(iter(str(error).splitlines()), "")
        self.errors[type(error).__name__, _pattern(line, NUMBER.pattern)] = None
        return [ANYTHING]

    def symptoms(self) -> list[dict[str, Any]]:
        """Return the symptoms that explain all that was noted."""
        groups: dict[tuple[str, bool], list[tuple[str, float]]] = {}
        for tensors, found in self.tensors.items():
            elements, worst = _elements(found), _worst(found)
            groups.setdefault((elements, math.isfinite(worst)), []).append((tensors, worst))
        wrong: list[dict[str, Any]] = []
        for (elements, is_limited), own in groups.items():
            limit = {"at_most": _power_of_two_above(max(worst for _, worst in own))} if is_limited else {}
            wrong.append({"tensors": "|".join(tensors for tensors, _ in own), "elements": elements} | limit)
        return wrong + [{"error": error, "message": message} for error, message in self.errors]


def _pattern(text: str, number: str) -> str:
    """Return a regular expression for the text, with any number where it has one."""
    ends = [0, *[end for found in re.finditer(number, text) for end in found.span()], len(text)]
    parts = [text[begin:end] for begin, end in zip(ends[::2], ends[1::2], strict=True)]
    numbers = [r"0x[0-9a-fA-F]+" if found[0].startswith("0x") else r"\d+" for found in re.finditer(number, text)]
    escaped = [re.sub(r"\\([ #&~'\-])", r"\1", re.escape(part)) for part in parts]
    return "".join(a + b for a, b in zip(escaped, [*numbers, ""], strict=True))


def _elements(found: list[tuple[MismatchError, Mask]]) -> str:
    """Return the name of the most specific predicate that explains these elements."""
    return next(name for name, explains in PREDICATES.items() if all((m <= explains(e, {})).all() for e, m in found))


def _worst(found: list[tuple[MismatchError, Mask]]) -> float:
    """Return the largest error of these elements in budgets; infinity if one is infinite or was not measured so."""
    return max(math.inf if error.ratio is None else float(error.ratio[mask].max()) for error, mask in found)


def _power_of_two_above(number: float) -> int:
    """Return the limit of errors, chosen as the limit of 8 budgets is: the power of two above the worst."""
    return int(2 ** math.ceil(math.log2(number)))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note the symptoms of a law that fails."""
    try:
        return (yield)
    except (Exception, pytest.fail.Exception):
        if isinstance(item, pytest.Function) and item.get_closest_marker("law"):
            item.stash[NOTED] = _noted(item)
        raise


def _noted(item: pytest.Function) -> dict[str, Any]:
    """Run the law once more, first on the example on which it has failed; return what is noted."""
    stack: Any = item.callspec.params["stack"]
    drawn, text = current_ledger().drawn, current_drawn()
    noting = Noting()
    try:
        with recording(noting):
            expect_known_issues(item)
            if drawn:
                counted_law(item)(**{"stack": stack, **drawn})
            item.runtest()
    except (Exception, pytest.fail.Exception, LawTimeout):
        pass  # what was noted before it may be all; the run with the draft shows what is not
    where = {
        "subject": stack.subject.spec,
        "engine": stack.engine.name if stack.engine else "",
        "device": str(stack.device),
    }
    counterexample = ", ".join(f"{name}={value}" for name, value in text.items())
    return {
        "law": item.originalname,
        "stacks": where,
        "dtype": dtype_name(stack.dtype),
        "counterexample": counterexample if drawn and _can_be_read(counterexample, drawn) else "",
        "symptoms": noting.symptoms(),
    }


def _can_be_read(text: str, drawn: Mapping[str, Any]) -> bool:
    """Whether the arguments can be read from the text again."""
    try:
        return repr(arguments.parse(text)) == repr(dict(drawn))
    except ValueError:
        return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Attach what was noted to the law's report."""
    report: Any = yield
    if report.when == "call" and NOTED in item.stash:
        report.user_properties.append((DRAFT, item.stash[NOTED]))
    return report  # type: ignore[no-any-return]


class Draft:
    """Collects what was noted in a run, also from parallel workers, and writes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.noted: list[dict[str, Any]] = []
        self.left_out: list[Entry] = []
        self.line = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what was noted about a law, or note that nothing could be."""
        properties: dict[str, Any] = dict(report.user_properties)
        entry, noted = properties.get(PROPERTY), properties.get(DRAFT)
        if noted and noted["symptoms"] and not (entry and reason_not_judged(entry)):
            self.noted.append(noted | {"message": entry["message"] if entry else ""})
        elif entry and entry["outcome"] == "failed":
            self.left_out.append(entry)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the file if a law has failed; an existing one is not overwritten."""
        if not self.noted and not self.left_out:
            return
        deviations = _grouped(self.noted)
        with self.path.open("x", encoding="utf-8") as file:
            file.write("\n".join([INTRODUCTION, *map(_not_drafted, self.left_out), *map(_table, deviations)]))
        self.line = f"{self.path}: a draft of {plural(len(deviations), 'known deviation')}"
        failures = plural(len(self.left_out), "failure")
        self.line += f", without {failures} that cannot be forgiven" if self.left_out else ""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was written."""
        if self.line:
            terminalreporter.write_line(self.line)


def _grouped(noted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one deviation for all dtypes in which a law shows the same on the same counterexample."""
    groups: dict[str, dict[str, Any]] = {}
    for one in noted:
        key = json.dumps([one[name] for name in ("law", "stacks", "counterexample", "symptoms")])
        group = groups.setdefault(key, one | {"dtypes": []})
        group["dtypes"] += [one["dtype"]] if one["dtype"] not in group["dtypes"] else []
    return list(groups.values())


def _not_drafted(entry: Entry) -> str:
    """Return a comment about a failure that no deviation can forgive: a crash, a hang, or one that does not repeat."""
    line = " ".join(entry["message"].partition("\n")[0].split())
    return f"# not drafted: {entry['law']} on {entry['stack']}: {line}; leave the law out with --skip-laws FILE\n"


def _table(deviation: dict[str, Any]) -> str:
    """Return a deviation as TOML."""
    seen = next(iter(deviation["message"].splitlines()), "").removeprefix("properties.comparison.")
    where = {name: value for name, value in deviation["stacks"].items() if value or name == "engine"}
    stacks = ", ".join(f"{name} = {_toml(value)}" for name, value in (where | {"dtype": deviation["dtypes"]}).items())
    lines = ["[[deviation]]", f"law = {_toml(deviation['law'])}", f"reason = {_toml(f'TODO: {seen}')}"]
    lines.append(f"stacks = {{ {stacks} }}")
    if deviation["counterexample"]:
        lines.append(f"counterexample = {_toml(deviation['counterexample'])}")
    for symptom in deviation["symptoms"]:
        lines += ["[[deviation.symptoms]]", *[f"{name} = {_toml(value)}" for name, value in symptom.items()]]
    return "\n".join([*lines, ""])


def _toml(value: Any) -> str:
    """Return a string, a number or a list of them as TOML; a string without escapes where that is possible."""
    if not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else str(value)
    if "\\" in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
