"""The metadata service of a cloud beside the hosts, which take themselves for machines of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.fakes import cloud_metadata
from tests.vm import host


@contextlib.contextmanager
def google() -> Iterator[tuple[str, Callable[..., None]]]:
    """Google's metadata service, as hosts reach it: its address, and what sets whether the host is preempted."""
    ready: list[Any] = []
    begun, ending = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with cloud_metadata.Metadata(listen="0.0.0.0") as service:
            ready.extend((asyncio.get_running_loop(), service))
            begun.set()
            await ending.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert begun.wait(host.PATIENCE)
    loop, service = ready

    def preempt(*, announced: bool) -> None:
        loop.call_soon_threadsafe(lambda: service.change(preempted=announced))

    try:
        port = service.address.rpartition(":")[2]
        yield f"10.0.2.2:{port}", preempt
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
