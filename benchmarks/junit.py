"""Helpers for JUnit XML files."""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml


def to_xml(suite: Xml.Element) -> str:
    """Return a `testsuite` element as a JUnit XML document; its counts of tests and outcomes are set first."""
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase[{kind}]"))))
    suite.set("tests", str(len(suite)))
    Xml.indent(suite)
    return Xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def xml_text(text: str) -> str:
    """Return the text with every character that XML 1.0 does not allow replaced by a question mark."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
