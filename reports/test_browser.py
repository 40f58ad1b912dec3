"""The look at pages notices what is wrong with one, and says what it cannot do without."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="`tox run -e browser` installs it, and runs these tests too")

from reports import browser
from reports.browser import BrowserError, chromium, main

GOOD = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"></head>
<body><main><h1>All is well</h1>{}</main></body></html>"""

FAULTS = {
    "wider": ('<div style="width:3000px;height:1px"></div>', "is wider than 360 px at <div"),
    "asks": ('<img alt="a picture" src="nowhere.png">', "asks for file://"),
    "says": ("<script>console.error('a fault')</script>", "says a fault"),
    "raises": ("<script>nothing()</script>", "says nothing is not defined"),
    "pale": ('<p style="color:#ddd;background:#fff">hardly to be read</p>', "color-contrast: "),
    "unnamed": ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "image-alt: "),
}


@pytest.fixture(autouse=True)
def installed() -> None:
    """Where there is no browser, there is nothing to try."""
    try:
        chromium()
    except BrowserError as error:
        pytest.skip(str(error))


def looked_at(folder: Path, body: str) -> int:
    (folder / "page.html").write_text(GOOD.format(body))
    return main([str(folder / "page.html"), "--pictures", str(folder / "pictures")])


def test_a_good_page_has_no_fault_and_its_pictures_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert looked_at(tmp_path, "") == 0
    assert capsys.readouterr().out.count(" 0 faults") == 4
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body, said = FAULTS[fault]

    assert looked_at(tmp_path, body) == 1
    assert said in capsys.readouterr().out


def test_a_page_that_is_too_large_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(browser, "SIZE", 10)

    assert looked_at(tmp_path, "") == 1
    assert "bytes, 10 are allowed" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["page", "browser"])
def test_what_is_missing_is_said(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "browser":
        (tmp_path / "page.html").write_text(GOOD)
        monkeypatch.setenv("CHROMIUM", "no-such-browser")

    assert main([str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert {"page": "no such page", "browser": "no no-such-browser is installed"}[what] in error
