"""Files of a run for CI: JUnit XML, and JSON for github-action-benchmark."""

from __future__ import annotations

import json
from xml.etree import ElementTree as Xml

from benchmarks.junit import to_xml, xml_text
from reports.laws import CHAPTERS, DEVIATES, FORGIVEN, NOT_JUDGED, UNCHECKED, Law
from reports.run import Run
from reports.verdict import Part, parts

NAMES = ("junit.xml", "benchmark-action.json")


def texts(run: Run) -> dict[str, str]:
    """The content of both files, by name."""
    return dict(zip(NAMES, (junit(run), benchmark_action(run)), strict=True))


def junit(run: Run) -> str:
    """
    One test per part of the run, which fails if the part does, and one per law, by its title.

    A violation is a failure with its counterexample.
    """
    tests = Xml.Element("testsuite", name="run")
    for part in parts(run):
        _add_part(tests, part)
    for prefix, results in zip(("", "engines: "), run.law_results, strict=False):
        for law in results.laws:
            _add_law(tests, law, prefix)
    return to_xml(tests)


def _add_part(tests: Xml.Element, part: Part) -> None:
    test = Xml.SubElement(tests, "testcase", classname="verdict", name=part.name)
    if part.failures:
        failure = Xml.SubElement(test, "failure", message=xml_text(", ".join(part.failures)))
        failure.text = xml_text("\n".join(part.details))
    elif part.inconclusive:
        Xml.SubElement(test, "skipped", message=xml_text(part.text))


def _add_law(tests: Xml.Element, law: Law, prefix: str) -> None:
    test = Xml.SubElement(
        tests,
        "testcase",
        classname=prefix + CHAPTERS.get(law.chapter, law.chapter),
        name=xml_text(law.title),
        time=f"{law.seconds:.3f}",
    )
    for entry in law.violations:
        failure = Xml.SubElement(test, "failure", message=xml_text(entry["message"]))
        failure.text = xml_text(f"{entry['stack']}\n{entry['counterexample']}\n{entry['command']}")
    if law.outcome in (NOT_JUDGED, FORGIVEN, DEVIATES, *UNCHECKED):
        Xml.SubElement(test, "skipped", message=xml_text("; ".join(law.not_judged or law.skip_reasons)))


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
