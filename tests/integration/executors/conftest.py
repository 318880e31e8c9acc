from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentina.executors import process


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[process.ProcessExecutor]:
    made = process.ProcessExecutor(tmp_path)
    await made.open()
    yield made
    await made.close()
