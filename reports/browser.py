"""
Pages as a browser shows them: `tox run -e browser`, or `python -m reports.browser PAGE...`.

Each page is opened in Chromium, as wide as a phone and as a desk, light and dark. It may ask for nothing from anywhere,
write nothing to the console, and not be wider than the window; axe-core may find no fault in contrast, headings, tables
or texts (https://github.com/dequelabs/axe-core). What was seen is kept as pictures.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, sync_playwright

from reports.__main__ import LATEST

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = {"phone": 360, "desk": 1440}
SCHEMES = ("light", "dark")
SIZE = 2 * 2**20
"""Bytes that a page may have."""

LOADING = 1000.0
"""Milliseconds in which it is there."""

WIDER = """() => [...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, svg"))
    .map(e => e.outerHTML.slice(0, 80))"""
LOADED = "() => performance.getEntriesByType('navigation')[0].loadEventEnd"


class BrowserError(RuntimeError):
    """No browser, or no page; the message is one line that says what to do."""


def chromium() -> str:
    """The browser's program, which CHROMIUM may name; raises BrowserError where there is none."""
    named = os.environ.get("CHROMIUM")
    for name in [named] if named else NAMES:
        if found := shutil.which(name):
            return found
    raise BrowserError(f"no {named or 'Chromium'} is installed: `apt install chromium`, or name one with CHROMIUM=FILE")


def faults(browser: Browser, page: Path, width: int, scheme: str, picture: Path) -> Iterator[str]:
    """What is wrong with a page in a window of this width, each in a line."""
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=scheme)
    tab, requests, said = context.new_page(), [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(page.resolve().as_uri())
    tab.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
    tab.screenshot(path=picture, full_page=True)
    yield from (f"asks for {url}" for url in requests[1:] if not url.startswith("data:"))
    yield from (f"says {text}" for text in said)
    yield from (f"is wider than {width} px at {element}" for element in tab.evaluate(WIDER))
    if (loading := tab.evaluate(LOADED)) > LOADING:
        yield f"takes {loading:.0f} ms to load, {LOADING:.0f} are allowed"
    for violation in Axe().run(tab).response["violations"]:
        places = [node["target"][0] for node in violation["nodes"]]
        yield f"{violation['id']}: {violation['help']}, at {places[0]} and {len(places) - 1} more"
    context.close()


def check(pages: list[Path], pictures: Path) -> int:
    """Print what is wrong with each page, and the number of faults."""
    missing = [page for page in pages if not page.is_file()]
    if missing:
        raise BrowserError(f"{missing[0]}: no such page; `tox run -e report` makes {LATEST}/index.html")
    pictures.mkdir(parents=True, exist_ok=True)
    count = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])  # root has none
        for page in pages:
            if (size := page.stat().st_size) > SIZE:
                count += 1
                print(f"{page}: has {size:,} bytes, {SIZE:,} are allowed")
            for (where, width), scheme in product(WIDTHS.items(), SCHEMES):
                picture = pictures / f"{page.parent.name}-{page.stem}-{where}-{scheme}.png"
                found = list(faults(browser, page, width, scheme, picture))
                print(f"{page}, {where}, {scheme}: {len(found)} faults, {size:,} bytes; {picture}", flush=True)
                print("".join(f"  {fault}\n" for fault in found), end="", flush=True)
                count += len(found)
        browser.close()
    return count


def main(arguments: list[str] | None = None) -> int:
    """0 where no page has a fault, 1 where one has, 2 where that cannot be seen."""
    parser = argparse.ArgumentParser(prog="python -m reports.browser", description="Look at pages in Chromium.")
    parser.add_argument("pages", nargs="*", type=Path, default=[LATEST / "index.html"], metavar="PAGE")
    parser.add_argument("--pictures", type=Path, default=LATEST / "pictures", metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        return 1 if check(options.pages, options.pictures) else 0
    except BrowserError as error:
        print(f"error: {error}", file=sys.stderr)
    except Error as error:
        print(f"error: the browser: {' '.join(str(error).split())[:300]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
