from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agentina import errors
from agentina.host import localapi
from agentina.protocol import local

STATUS = local.InstanceStatus(instance="default", version="1", state="online", healthy=True)


class Acts:
    """What the daemon was asked to do."""

    def __init__(self) -> None:
        self.asked: list[local.LocalRequest] = []

    def act(self, request: local.LocalRequest) -> None:
        if request.reason == "fails":
            raise errors.DISK_FULL(path="/x")
        if request.reason == "breaks":
            raise RuntimeError
        self.asked.append(request)


@pytest.fixture
async def served() -> AsyncIterator[tuple[Path, Acts]]:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path, acts = Path(directory) / "run/agentina.sock", Acts()
        api = localapi.LocalApi(path, status=lambda: STATUS, act=acts.act)
        await api.open()
        yield path, acts
        await api.close()


async def ask(path: Path, line: bytes) -> local.LocalAnswer:
    reader, writer = await asyncio.open_unix_connection(os.fspath(path))
    writer.write(line + b"\n")
    answer = await reader.readline()
    writer.close()
    return msgspec.json.decode(answer, type=local.LocalAnswer)


async def test_verbs_are_carried_out_and_answered_with_the_status(served: tuple[Path, Acts]) -> None:
    path, acts = served
    assert (await ask(path, b'{"verb":"status"}')).status == STATUS
    assert (await ask(path, b'{"verb":"drain","reason":"kernel update"}')).status == STATUS
    assert [(request.verb, request.reason) for request in acts.asked] == [("drain", "kernel update")]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", "INPUT_UNREADABLE"),
        (b'{"verb":"explode"}', "INPUT_INVALID"),
        (b'{"verb":"status","x":1}', "INPUT_UNKNOWN_KEY"),
        (b'{"verb":"drain","reason":"fails"}', "DISK_FULL"),
        (b'{"verb":"drain","reason":"breaks"}', "INTERNAL"),
    ],
)
async def test_bad_requests_get_an_error_and_the_next_one_works(
    served: tuple[Path, Acts], line: bytes, code: str
) -> None:
    answer = await ask(served[0], line)
    assert answer.error is not None
    assert answer.error["code"] == code
    assert (await ask(served[0], b'{"verb":"status"}')).status == STATUS


async def test_endless_line_is_cut_off(served: tuple[Path, Acts]) -> None:
    reader, writer = await asyncio.open_unix_connection(os.fspath(served[0]))
    writer.write(b"x" * 300_000)
    with contextlib.suppress(ConnectionResetError):  # it closes with bytes unread
        assert await reader.read() == b""
    writer.close()
    assert (await ask(served[0], b'{"verb":"status"}')).status == STATUS


async def test_socket_is_closed_to_others_and_replaces_a_dead_one(served: tuple[Path, Acts]) -> None:
    path, _ = served
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    again = localapi.LocalApi(path, status=lambda: STATUS, act=lambda _: None)
    await again.open()
    assert (await ask(path, b'{"verb":"status"}')).status == STATUS
    await again.close()


@pytest.mark.parametrize(
    ("verb", "user", "allowed"),
    [("status", 0, True), ("drain", 0, True), ("drain", 100, True), ("status", 5, True), ("drain", 5, False)],
)
def test_who_may_do_what(verb: str, user: int, allowed: bool) -> None:  # noqa: FBT001
    assert localapi.may(verb, user=user, own_user=100) is allowed
