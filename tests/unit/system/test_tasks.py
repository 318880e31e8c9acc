from __future__ import annotations

import asyncio
import logging

import pytest

from agentina.system import tasks


async def test_failure_is_logged_with_the_name(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with caplog.at_level(logging.ERROR):
        task = tasks.start(fail(), name="the-loop")
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert "the-loop" in caplog.text
    assert "broken" in caplog.text


async def test_failure_goes_to_the_handler() -> None:
    seen: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def fail() -> None:
        raise ValueError("broken")

    tasks.start(fail(), name="x", on_failure=seen.set_result)
    assert str(await seen) == "broken"


async def test_cancel_waits_until_tasks_have_ended() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = tasks.start(work(), name="x")
    await asyncio.sleep(0)
    await tasks.cancel(task, None)
    assert ended == [True]


async def test_what_must_finish_is_waited_for_though_canceled_twice() -> None:
    may_end, ended = asyncio.Event(), []

    async def work() -> None:
        await may_end.wait()
        ended.append(True)

    task = tasks.start(tasks.finish(work()), name="x")
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await asyncio.wait([task])
    assert (ended, task.cancelled()) == ([True], True)


async def test_what_must_finish_is_waited_for_though_canceled() -> None:
    may_end, ended, hastened = asyncio.Event(), [], []

    async def work() -> None:
        await may_end.wait()
        ended.append(True)

    task = tasks.start(tasks.finish(work(), on_cancel=lambda: hastened.append(True)), name="x")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert hastened == [True]
    assert not task.done()
    may_end.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == [True]


async def test_what_must_finish_may_fail_after_it_was_canceled() -> None:
    may_end = asyncio.Event()

    async def fail() -> None:
        await may_end.wait()
        raise ValueError("broken")

    task = tasks.start(tasks.finish(fail()), name="x")
    await asyncio.sleep(0)
    task.cancel()
    may_end.set()
    await asyncio.wait([task])
    assert task.cancelled()
