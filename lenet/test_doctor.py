"""What `lenet-properties doctor` finds and says."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from lenet import doctor, engines
from lenet.engines import EngineError


def test_missing_requirement_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name == "jinja2":
            raise PackageNotFoundError(name)
        return "9999"

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=2.5", "jinja2", "jax; extra == 'peers'"])

    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["jinja2", "missing", "pip", "install", "'jinja2'"] for line in lines)
    assert lines[-1] == "cannot judge: jinja2"


def test_version_that_is_too_old_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "2.4.1")
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=2.5"])

    assert list(doctor.packages()) == [doctor.Finding("torch", "unusable", "2.4.1; needed: >=2.5", required=True)]


def test_engine_that_cannot_be_loaded_is_missing_or_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        if name == "jax":
            raise EngineError("--engine jax: the package jax is missing")
        raise ImportError("another\nversion")

    monkeypatch.setattr(engines, "load", load)

    found = {finding.name: finding for finding in doctor.usable_engines()}

    assert found["engine jax"] == doctor.Finding("engine jax", "missing", "the package jax is missing")
    assert found["engine eager"] == doctor.Finding("engine eager", "unusable", "ImportError: another version")


def test_compiling_engine_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    found = {finding.name: finding for finding in (*doctor.usable_engines(), *doctor.tools())}

    assert found["engine compiled"] == doctor.Finding("engine compiled", "unusable", "needs a C++ compiler")
    assert found["engine eager"].state == "ok"
    assert found["C++ compiler"].state == found["git"].state == "missing"
