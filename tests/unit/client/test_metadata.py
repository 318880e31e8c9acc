from __future__ import annotations

import pytest

from agentina.client import metadata
from tests.fakes import cloud_metadata, deadlines


@pytest.mark.parametrize(
    ("nonsense", "problem"),
    [
        (b"", "closed|cannot be asked"),
        (b"SSH-2.0-x\r\n", "cannot be asked"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "cannot be asked"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, "more than"),
    ],
)
async def test_nonsense_is_one_error(nonsense: bytes, problem: str) -> None:
    async with cloud_metadata.Metadata() as server:
        server.nonsense = nonsense
        with pytest.raises(metadata.UnreadableError, match=problem):
            await metadata.Service(server.address).request("GET", "/", {}, seconds=deadlines.HANG)


async def test_nobody_there_and_nobody_answering() -> None:
    with pytest.raises(metadata.UnreadableError, match="cannot be asked"):
        await metadata.Service("127.0.0.1:1").request("GET", "/", {}, seconds=deadlines.HANG)
    async with cloud_metadata.Metadata() as server:
        held = "/computeMetadata/v1/instance/preempted?wait_for_change=true&last_etag=e0&timeout_sec=60"
        with pytest.raises(metadata.UnreadableError, match=r"within 0\.1 s"):
            await metadata.Service(server.address).request("GET", held, {"Metadata-Flavor": "Google"}, seconds=0.1)


async def test_redirects_are_not_followed() -> None:
    async with cloud_metadata.Metadata() as server:
        server.nonsense = b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n"
        answer = await metadata.Service(server.address).request("GET", "/", {}, seconds=deadlines.HANG)
    assert answer.status == 302
    assert len(server.requests) == 1
