"""A run as other tools read it: JUnit XML, and the JSON of github-action-benchmark."""

from __future__ import annotations

import json
from xml.etree import ElementTree as Xml

from benchmarks.gate_report import xml, xml_text
from reports.run import Run

NAMES = ("junit.xml", "benchmark-action.json")


def texts(run: Run) -> dict[str, str]:
    """Both files, by name."""
    return dict(zip(NAMES, (junit(run), benchmark_action(run)), strict=True))


def junit(run: Run) -> str:
    """A test for each law, its message the counterexample; what failed besides laws is an error."""
    tests = Xml.Element("testsuite", name="laws")
    for law in run.laws:
        test = Xml.SubElement(tests, "testcase", classname=law.group, name=law.title, time=f"{law.seconds:.3f}")
        for entry in law.violations:
            violated = Xml.SubElement(test, "failure", message=xml_text(entry["message"]))
            violated.text = xml_text(f"{entry['stack']}\n{entry['counterexample']}\n{entry['command']}")
        if law.outcome == "not judged":
            Xml.SubElement(test, "skipped", message=xml_text("; ".join(law.reasons)))
    for name in run.failures:
        Xml.SubElement(Xml.SubElement(tests, "testcase", classname="others", name=xml_text(name)), "error")
    return xml(tests)


def benchmark_action(run: Run) -> str:
    """
    Images a second of each benchmark, in the form of github-action-benchmark's `customBiggerIsBetter`.

    https://github.com/benchmark-action/github-action-benchmark
    """
    entries = [
        {
            "name": f"{timing.operation} of {timing.batch} ({timing.subject}, {timing.where})",
            "unit": "images/s",
            "value": timing.throughput,
            "range": f"{timing.images / timing.high:.6g} to {timing.images / timing.low:.6g}",
            "extra": f"median of {timing.rounds} calls: {timing.median:.6g} s",
        }
        for timing in run.timings
        if timing.images
    ]
    return json.dumps(entries, indent=1)
