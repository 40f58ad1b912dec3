"""The timer waits for work on a GPU."""

from __future__ import annotations

from time import perf_counter

import pytest
import torch

from lenet.timer import timer


@pytest.mark.parametrize("initialized", [False, True])
def test_timer_synchronizes_only_with_an_initialized_gpu(monkeypatch: pytest.MonkeyPatch, initialized: bool) -> None:
    synchronized: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronized.append(perf_counter()))

    before, seconds, after = perf_counter(), timer(), perf_counter()

    assert len(synchronized) == initialized
    assert max([before, *synchronized]) <= seconds <= after
