"""Files of a run for CI: JUnit XML, and JSON for github-action-benchmark."""

from __future__ import annotations

import json
from xml.etree import ElementTree as Xml

from benchmarks.junit import to_xml, xml_text
from reports.run import CHAPTERS, Run

NAMES = ("junit.xml", "benchmark-action.json")


def texts(run: Run) -> dict[str, str]:
    """The content of both files, by name."""
    return dict(zip(NAMES, (junit(run), benchmark_action(run)), strict=True))


def junit(run: Run) -> str:
    """One test per law, by its title. A violation is a failure with its counterexample; `Run.errors` are errors."""
    tests = Xml.Element("testsuite", name="laws")
    for law in run.laws:
        test = Xml.SubElement(
            tests,
            "testcase",
            classname=CHAPTERS.get(law.chapter, law.chapter),
            name=xml_text(law.title),
            time=f"{law.seconds:.3f}",
        )
        for entry in law.violations:
            failure = Xml.SubElement(test, "failure", message=xml_text(entry["message"]))
            failure.text = xml_text(f"{entry['stack']}\n{entry['counterexample']}\n{entry['command']}")
        if law.outcome == "not checked":
            Xml.SubElement(test, "skipped", message=xml_text("; ".join(law.skip_reasons)))
    for name in run.errors:
        Xml.SubElement(Xml.SubElement(tests, "testcase", classname="other", name=xml_text(name)), "error")
    return to_xml(tests)


def benchmark_action(run: Run) -> str:
    """
    Images/s of each benchmark, as github-action-benchmark's tool `customBiggerIsBetter` reads them.

    https://github.com/benchmark-action/github-action-benchmark
    """
    entries = [
        {
            "name": f"{timing.operation}, batch size {timing.batch} ({timing.label})",
            "unit": "images/s",
            "value": timing.throughput,
            "range": f"{timing.images / timing.q3:.6g} to {timing.images / timing.q1:.6g}",
            "extra": f"median of {timing.calls} calls: {timing.median:.6g} s",
        }
        for timing in run.timings
        if timing.images
    ]
    return json.dumps(entries, indent=1)
