from __future__ import annotations

import asyncio
import logging

import pytest

from agentina.client import metadata
from agentina.host.leaving import clouds, departure, preemption
from agentina.system import tasks
from tests.fakes import cloud_metadata, deadlines


def test_configuration_chooses_and_auto_asks_the_firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preemption.choose("none", "") is None
    assert isinstance(preemption.choose("aws", ""), clouds.Amazon)
    monkeypatch.setattr(clouds, "detect", lambda: "azure")
    assert isinstance(preemption.choose("auto", ""), clouds.Azure)
    monkeypatch.setattr(clouds, "detect", lambda: "")
    assert preemption.choose("auto", "") is None


async def test_outage_of_the_service_keeps_what_it_said_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clouds.Amazon, "pause", 0.01)
    caplog.set_level(logging.INFO)
    said: list[departure.Notice | None] = []
    heard = asyncio.Event()

    def say(notice: departure.Notice | None) -> None:
        said.append(notice)
        heard.set()

    async with cloud_metadata.Metadata() as server:
        cloud = clouds.Amazon(server.address)
        looks, failures = 0, asyncio.Event()
        look = cloud.look

        async def counted() -> departure.Notice | None:
            nonlocal looks
            try:
                return await look()
            except metadata.UnreadableError:
                looks += 1
                if looks == 3:
                    failures.set()
                raise

        cloud.look = counted  # type: ignore[method-assign]
        server.change(action={"action": "stop", "time": "2026-11-21T10:02:00Z"})
        watching = tasks.start(preemption.watch(cloud, say), name="watch")
        async with asyncio.timeout(deadlines.HANG):
            await heard.wait()
            server.nonsense = b"garbage\r\n\r\n"
            await failures.wait()
            before = len(said)
            assert None not in said
            server.nonsense = None
            server.change(action=None)
            while None not in said[before:]:
                heard.clear()
                await heard.wait()
        await tasks.cancel(watching)
    messages = [record.message for record in caplog.records]
    assert sum("are not seen" in message for message in messages) == 1
    assert "preemption notices are seen again" in messages
