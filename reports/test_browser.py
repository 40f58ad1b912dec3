"""The check of pages in Chromium: it finds each kind of fault, and reports a missing page or browser."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="`tox run -e browser` installs it and runs these tests")

from reports import browser
from reports.browser import BrowserError, chromium, main

GOOD = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"></head>
<body><main><h1>No fault</h1>{}</main></body></html>"""

FAULTS = {
    "overflow": ('<div style="width:3000px;height:1px"></div>', "overflows 360 px at <div"),
    "request": ('<img alt="a picture" src="nowhere.png">', "requests file://"),
    "console": ("<script>console.error('a fault')</script>", "writes to the console: a fault"),
    "exception": ("<script>nothing()</script>", "writes to the console: nothing is not defined"),
    "contrast": ('<p style="color:#ddd;background:#fff">pale</p>', "color-contrast: "),
    "alt text": ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "image-alt: "),
}


@pytest.fixture(autouse=True)
def require_browser() -> None:
    """Skip the tests if no browser is installed."""
    try:
        chromium()
    except BrowserError as error:
        pytest.skip(str(error))


def check(folder: Path, body: str) -> int:
    (folder / "page.html").write_text(GOOD.format(body))
    return main([str(folder / "page.html"), "--screenshots", str(folder / "screenshots")])


def test_good_page_has_no_fault_and_screenshots_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "") == 0
    assert capsys.readouterr().out.count(" 0 faults") == 4
    assert len(list((tmp_path / "screenshots").glob("*.png"))) == 4


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body, message = FAULTS[fault]

    assert check(tmp_path, body) == 1
    assert message in capsys.readouterr().out


def test_large_page_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(browser, "MAX_SIZE", 10)

    assert check(tmp_path, "") == 1
    assert "bytes, 10 are allowed" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["page", "browser"])
def test_missing_page_or_browser_is_an_error_of_one_line(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing == "browser":
        (tmp_path / "page.html").write_text(GOOD)
        monkeypatch.setenv("CHROMIUM", "no-such-browser")

    assert main([str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert {"page": "no such page", "browser": "no no-such-browser is installed"}[missing] in error
