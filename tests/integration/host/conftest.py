from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes import control
from tests.integration.host import daemons


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: the daemon's socket lives below it."""
    path = Path(tempfile.mkdtemp(prefix="ag-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def plane() -> AsyncIterator[control.FakeControl]:
    async with control.FakeControl() as running:
        yield running


@pytest.fixture
async def daemon(root: Path, plane: control.FakeControl) -> AsyncIterator[daemons.DaemonProcess]:
    """An agent of ``plane`` that runs."""
    plane.install(root)
    process = daemons.DaemonProcess(root)
    await process.start()
    yield process
    await daemons.end(process, plane)
