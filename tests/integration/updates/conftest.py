from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of hosts and repositories live and die here; power cuts are simulated, so nothing has to be on disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
