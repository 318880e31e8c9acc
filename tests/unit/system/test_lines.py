"""One line asked, one answered: peers that do not take their answer, and a server that is closed as it opens."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from agentina.system import lines, tasks
from tests.fakes import deadlines


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def say(line: bytes, *_: object) -> bytes:
    return line.strip() * 1_000_000


async def ask(path: Path) -> bytes:
    """The answer; empty: there was no room."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 22)
    try:
        writer.write(b"x\n")
        return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_peer_that_does_not_take_its_answer_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_PEER_SECONDS", 0.5)
    server = lines.LineServer(say, limit=100, at_once=1)
    await server.open(tmp_path, "s", mode=0o600)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.connect(str(tmp_path / "s"))
        mute.sendall(b"x\n")
        async with asyncio.timeout(deadlines.HANG):
            while not (answer := await ask(tmp_path / "s")):  # noqa: ASYNC110 - nobody tells when there is room
                await asyncio.sleep(0.05)
    assert answer == b"x" * 1_000_000 + b"\n"
    await server.close()


@pytest.mark.parametrize("steps", range(5))
async def test_server_that_is_closed_as_it_opens_listens_no_more(tmp_path: Path, steps: int) -> None:
    before = open_files()
    server = lines.LineServer(say, limit=100, at_once=1)
    opening = tasks.start(server.open(tmp_path, "s", mode=0o600), name="opening")
    for _ in range(steps):
        await asyncio.sleep(0)
    await server.close()
    await opening
    await server.close()
    await asyncio.sleep(0)
    assert open_files() == before
    with pytest.raises(FileNotFoundError):
        await ask(tmp_path / "s")
