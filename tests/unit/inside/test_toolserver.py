from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mcp
import mcp.client.stdio
import mcp.types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.inside import door, toolserver
from agentina.protocol import verbs
from tests.fakes import doors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


class Asked(list[dict[str, Any]]):
    """Records what the daemon is asked, and answers the same to everything."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        super().__init__()
        self.answer = answer

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        self.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def respond(message: object, answer: dict[str, Any] | Exception | None = None) -> dict[str, Any] | None:
    server = toolserver.Server(Asked(answer or {"text": "noted"}), version="1.2")
    return server.respond(json.dumps(message).encode() if not isinstance(message, bytes) else message)


def call(name: object, arguments: object = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


def test_tools_are_the_verbs() -> None:
    assert {tool["name"] for tool in toolserver.TOOLS} == {
        kind.__struct_config__.tag for kind in verbs.Request.__args__
    }
    kinds = next(tool for tool in toolserver.TOOLS if tool["name"] == "complain")["inputSchema"]["properties"]["kind"]
    assert tuple(kinds["enum"]) == verbs.COMPLAINT_KINDS


@pytest.mark.parametrize("version", [*toolserver.VERSIONS, "2031-01-01", None, 7])
def test_version_is_the_clients_where_it_is_known(version: object) -> None:
    answer = respond({"id": 1, "method": "initialize", "params": {"protocolVersion": version}})
    assert answer is not None
    assert answer["result"]["protocolVersion"] == (version if version in toolserver.VERSIONS else "2025-11-25")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        ([], -32600),
        ({"id": 1}, -32600),
        ({"id": [], "method": "ping"}, -32600),
        ({"id": True, "method": "ping"}, -32600),
        ({"id": 1, "method": "resources/list"}, -32601),
        ({"id": 1, "method": "ping", "params": []}, -32602),
        (call("rm"), -32602),
        (call(None), -32602),
        (call("progress", {}), -32602),
        (call("progress", {"text": 5}), -32602),
        (call("progress", {"text": "x", "percent": True}), -32602),
        (call("progress", {"text": "x", "verb": "complain"}), -32602),
        (call("progress", ["text"]), -32602),
    ],
)
def test_what_cannot_be_served_is_an_error(message: object, code: int) -> None:
    answer = respond(message)
    assert answer is not None
    assert answer["error"]["code"] == code


@pytest.mark.parametrize(
    "message", [{"method": "notifications/initialized"}, {"method": "tools/call"}, {"id": 1, "result": {}}]
)
def test_notifications_and_answers_get_none(message: object) -> None:
    assert respond(message) is None


@given(JSON)
def test_answers_anything_as_json_rpc(message: object) -> None:
    answer = respond(message)
    if answer is not None:
        assert answer["jsonrpc"] == "2.0"
        assert ("result" in answer) != ("error" in answer)


@given(st.binary(max_size=200))
def test_survives_any_bytes(line: bytes) -> None:
    respond(line)


@pytest.mark.parametrize(
    ("answer", "words", "is_error"),
    [
        ({"text": "noted"}, "noted", False),
        ({"question": 1, "answer": "yes"}, "yes", False),
        ({"budget": {"tokens": 5}}, '{"tokens": 5}', False),
        ({"text": "noted", "notices": ["hurry"]}, "Notice: hurry\nnoted", False),
        ({"error": {"code": "X", "message": "No.", "remedy": "Wait."}}, "No. Wait. [X]", True),
        (door.ClosedError("gone"), "does not answer (gone)", True),
        (door.NoDoorError(), "does not take", True),
    ],
)
def test_daemons_words_are_the_agents(answer: dict[str, Any] | Exception, words: str, is_error: bool) -> None:  # noqa: FBT001
    answered = respond(call("progress", {"text": "x"}), answer)
    assert answered is not None
    assert words in answered["result"]["content"][0]["text"]
    assert answered["result"]["isError"] is is_error


# --- as the official SDK finds it --------------------------------------------------------------------------------


async def test_official_client_uses_it(tmp_path: Path) -> None:
    async with doors.running(tmp_path) as fake:
        command = mcp.StdioServerParameters(
            command=sys.executable, args=["-I", "-S", toolserver.__file__, str(fake.path)], cwd=tmp_path
        )
        async with mcp.client.stdio.stdio_client(command) as (reader, writer), mcp.ClientSession(reader, writer) as own:
            assert (await own.initialize()).server_info.name == "agentina"
            assert [tool.name for tool in (await own.list_tools()).tools] == [t["name"] for t in toolserver.TOOLS]
            fake.answer = {"text": "noted"}
            told = await own.call_tool("complain", {"kind": "other", "text": "é😀\n", "about": "x"})
            assert not told.is_error
            await own.call_tool("artifact", {"path": "report"})
            fake.answer = {"error": {"code": "TASK_SAYS_TOO_MUCH", "message": "Enough.", "remedy": "Work."}}
            refused = await own.call_tool("progress", {"text": "x"})
            assert refused.is_error
            assert isinstance(refused.content[0], mcp.types.TextContent)
            assert "TASK_SAYS_TOO_MUCH" in refused.content[0].text
            await own.send_ping()
    assert [request["verb"] for request in fake.asked] == ["complain", "artifact", "progress"]
    assert fake.asked[0]["text"] == "é😀\n"
    assert fake.asked[1]["path"] == str(tmp_path / "report")


async def test_official_client_that_looks_for_newer_protocols_uses_it(tmp_path: Path) -> None:
    async with doors.running(tmp_path) as fake:
        fake.answer = {"text": "noted"}
        command = mcp.StdioServerParameters(
            command=sys.executable, args=["-I", "-S", toolserver.__file__, str(fake.path)]
        )
        async with mcp.Client(mcp.client.stdio.stdio_client(command)) as client:
            assert not (await client.call_tool("progress", {"text": "half", "percent": 50})).is_error
    assert fake.asked[0]["percent"] == 50
