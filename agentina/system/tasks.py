"""The only way to start an asyncio task: named, referenced, and never silent about its failure."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)
_running: set[asyncio.Task[Any]] = set()


def start(
    work: Coroutine[Any, Any, T], *, name: str, on_failure: Callable[[BaseException], None] | None = None
) -> asyncio.Task[T]:
    """Run ``work`` as a task called ``name``.

    asyncio keeps only a weak reference to a task; this keeps a strong one until it ends. A failure is logged, and
    given to ``on_failure``, unless the task was canceled.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    _running.add(task)

    def ended(done: asyncio.Task[T]) -> None:
        _running.discard(done)
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            if on_failure is not None:
                on_failure(error)
            else:
                _log.error("task %s failed: %s", done.get_name(), error, exc_info=error)

    task.add_done_callback(ended)
    return task


async def cancel(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended."""
    started = [task for task in tasks if task is not None]
    for task in started:
        task.cancel()
    if started:
        await asyncio.gather(*started, return_exceptions=True)


async def finish(work: Awaitable[T], *, on_cancel: Callable[[], None] = lambda: None) -> T:
    """What ``work`` comes to. When this is canceled it waits all the same, and only then is canceled itself.

    For what whoever comes next must not meet half done. ``on_cancel`` may hasten its end.
    """
    working = asyncio.ensure_future(work)  # noqa: TID251 - awaited here, whatever comes
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        on_cancel()
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):  # once more, by somebody less patient
                await asyncio.wait({working})
        if not working.cancelled():
            working.exception()  # nobody hears of it, as of its result
        raise


async def in_thread(function: Callable[..., T], *arguments: object, on_cancel: Callable[[], None] = lambda: None) -> T:
    """What ``function`` returns. A thread cannot be ended, so it is waited for as :func:`finish` does."""
    loop = asyncio.get_running_loop()
    return await finish(loop.run_in_executor(None, functools.partial(function, *arguments)), on_cancel=on_cancel)
