"""What an entry of a run's record says about its law: violated, or not judged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NOT_JUDGED = "not judged: "
"""What the message of an error begins with if the error does not mean that the law is violated."""


def reason_not_judged(entry: Mapping[str, Any]) -> str:
    """Return why a law that failed was not judged; empty if it was judged."""
    found = re.match(rf"(?:\w+: )?{NOT_JUDGED}(.*)", entry["message"]) if entry["outcome"] == "failed" else None
    return found[1] if found else ""


def is_violated(entry: Mapping[str, Any]) -> bool:
    """Whether the law was judged and failed."""
    return entry["outcome"] == "failed" and not reason_not_judged(entry)


def outcome(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return what a law's entries on one stack say: violated, not judged, forgiven (in every example), or holds."""
    if any(map(is_violated, entries)):
        return "violated"
    if any(map(reason_not_judged, entries)):
        return "not judged"
    examples, forgiven = (sum(entry[name] for entry in entries) for name in ("examples", "forgiven"))
    return "forgiven" if 0 < examples <= forgiven else "holds"
