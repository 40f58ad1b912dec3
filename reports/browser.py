"""
Checks pages in Chromium: `tox run -e browser`, or `python -m reports.browser PAGE...`.

Each page is opened at the width of a phone and of a desktop, in the light and the dark color scheme. A page must not
request any other file, write to the console, overflow the window, or be too large or too slow; axe-core must find no
accessibility violation (https://github.com/dequelabs/axe-core). The screenshots are kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

try:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import Browser, Error, sync_playwright
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    print(f"error: {error.name} is not installed; run `tox run -e browser`", file=sys.stderr)
    sys.exit(2)

from reports.commands import LATEST

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = {"phone": 360, "desktop": 1440}
"""Widths of the window in CSS pixels."""

SCHEMES = ("light", "dark")
MAX_SIZE = 2 * 2**20
"""The largest size of a page in bytes."""

MAX_LOAD_TIME = 1000.0
"""The longest time to load a page in milliseconds."""

OVERFLOWING = """() => [...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, svg"))
    .map(e => e.outerHTML.slice(0, 80))"""
LOAD_TIME = "() => performance.getEntriesByType('navigation')[0].loadEventEnd"


class BrowserError(RuntimeError):
    """The browser or a page is missing; the message is one line that says what to do."""


def chromium() -> str:
    """Return the path of Chromium, or of the program in the variable CHROMIUM; raises BrowserError if it is missing."""
    named = os.environ.get("CHROMIUM")
    for name in [named] if named else NAMES:
        if found := shutil.which(name):
            return found
    raise BrowserError(f"no {named or 'Chromium'} is installed: `apt install chromium`, or name one with CHROMIUM=FILE")


def faults(browser: Browser, page: Path, width: int, scheme: str, screenshot: Path) -> Iterator[str]:
    """Open a page in a window of this width, save a screenshot, and yield one line per fault."""
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=scheme)
    tab, requests, messages = context.new_page(), [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.goto(page.resolve().as_uri())
    tab.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
    tab.screenshot(path=screenshot, full_page=True)
    yield from (f"requests {url}" for url in requests[1:] if not url.startswith("data:"))
    yield from (f"writes to the console: {text}" for text in messages)
    yield from (f"overflows {width} px at {element}" for element in tab.evaluate(OVERFLOWING))
    if (load_time := tab.evaluate(LOAD_TIME)) > MAX_LOAD_TIME:
        yield f"takes {load_time:.0f} ms to load, {MAX_LOAD_TIME:.0f} ms are allowed"
    for violation in Axe().run(tab).response["violations"]:
        targets = [node["target"][0] for node in violation["nodes"]]
        yield f"{violation['id']}: {violation['help']}, at {targets[0]} and {len(targets) - 1} more"
    context.close()


def check(pages: list[Path], screenshots: Path) -> int:
    """Print the faults of each page, and return their number."""
    missing = [page for page in pages if not page.is_file()]
    if missing:
        raise BrowserError(f"{missing[0]}: no such page; `tox run -e report` writes {LATEST}/index.html")
    screenshots.mkdir(parents=True, exist_ok=True)
    count = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])  # root cannot use it
        for page in pages:
            if (size := page.stat().st_size) > MAX_SIZE:
                count += 1
                print(f"{page}: has {size:,} bytes, {MAX_SIZE:,} are allowed")
            for (window, width), scheme in product(WIDTHS.items(), SCHEMES):
                screenshot = screenshots / f"{page.parent.name}-{page.stem}-{window}-{scheme}.png"
                found = list(faults(browser, page, width, scheme, screenshot))
                print(f"{page}, {window}, {scheme}: {len(found)} faults, {size:,} bytes; {screenshot}", flush=True)
                print("".join(f"  {fault}\n" for fault in found), end="", flush=True)
                count += len(found)
        browser.close()
    return count


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if no page has a fault, 1 if one has, and 2 if the check cannot run."""
    parser = argparse.ArgumentParser(prog="python -m reports.browser", description="Check pages in Chromium.")
    parser.add_argument("pages", nargs="*", type=Path, default=[LATEST / "index.html"], metavar="PAGE")
    parser.add_argument("--screenshots", type=Path, default=LATEST / "screenshots", metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        return 1 if check(options.pages, options.screenshots) else 0
    except BrowserError as error:
        print(f"error: {error}", file=sys.stderr)
    except Error as error:
        print(f"error: the browser: {' '.join(str(error).split())[:300]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
