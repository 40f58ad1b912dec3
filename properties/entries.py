"""What an entry of a run's record says about its law: violated, or not judged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NOT_JUDGED = "not judged: "
"""What the message of an error begins with if the error does not mean that the law is violated."""


LEFT_OUT = "left out by --skip-laws: "
"""What the reason of a skipped law begins with if the user has listed it."""


def dtype_of(entry: Mapping[str, Any]) -> str:
    """Return the name of the dtype of the entry's stack; empty if it has no stack."""
    found = re.search(r" in (\w+)(?:, judged as \w+)?$", entry["stack"])
    return found[1] if found else ""


def reason_left_out(entry: Mapping[str, Any]) -> str:
    """Return the user's reason for leaving the law out; empty if it was not left out."""
    reason: str = entry["reason"]
    return reason.partition(LEFT_OUT)[2]


def reason_not_judged(entry: Mapping[str, Any]) -> str:
    """Return why a law that failed was not judged; empty if it was judged."""
    found = re.match(rf"(?:\w+: )?{NOT_JUDGED}(.*)", entry["message"]) if entry["outcome"] == "failed" else None
    return found[1] if found else ""


def seen_deviations(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the known deviations that the law showed; an older version recorded none."""
    return [deviation for deviation in entry.get("known_deviations", []) if deviation["seen"]]


def is_violated(entry: Mapping[str, Any]) -> bool:
    """Whether the law was judged and failed."""
    return entry["outcome"] == "failed" and not reason_not_judged(entry)


def outcome(entries: Sequence[Mapping[str, Any]]) -> str:
    """
    Return what a law's entries on one stack say: violated, not judged, forgiven, deviates, or holds.

    A law is forgiven if every example showed a known issue. It deviates if some of them showed known deviations alone.
    """
    if any(map(is_violated, entries)):
        return "violated"
    if any(map(reason_not_judged, entries)):
        return "not judged"
    examples, forgiven, deviating = (
        sum(entry.get(name, 0) for entry in entries) for name in ("examples", "forgiven", "deviating")
    )
    if 0 < examples <= forgiven + deviating:
        return "deviates" if deviating else "forgiven"
    return "holds"
