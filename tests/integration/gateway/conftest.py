from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.gateway import beds


@pytest.fixture
async def bed() -> AsyncIterator[beds.Bed]:
    async with beds.made() as running:
        yield running
