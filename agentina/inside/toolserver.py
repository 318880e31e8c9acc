"""The task's verbs as tools of an AI agent: a server of the Model Context Protocol over stdin and stdout.

    python3 -I -S toolserver.py SOCKET

The part of the protocol that a server of tools needs (modelcontextprotocol.io/specification): ``initialize``,
``ping``, ``tools/list``, ``tools/call``, and notifications, of which only ``notifications/cancelled`` says something,
too late for verbs that take milliseconds. One JSON-RPC 2.0 message a line. Whatever it is sent, it answers or is silent
as JSON-RPC says, and goes on:

| message | answer |
| --- | --- |
| no JSON | error -32700, without an id |
| no object, no method, an id of another type | error -32600 |
| a notification (no id), whatever it says | none |
| an answer to us (``result`` or ``error`` without a method) | none: nothing was asked |
| an unknown method | error -32601 |
| unknown tool, arguments of another form | error -32602 |
| a tool that the daemon refuses, or no daemon | a result with ``isError``, in words for the agent |

Why not the official SDK: docs/adr/0015.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

if __name__ == "__main__":
    # Run as a file, by any Python: nothing of agentina can be found but by its place.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from agentina.inside import door

#: Versions of the protocol that this server is right for, the newest first: what differs is not in this part of it.
VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
#: Seconds a question waits at most: command lines give up a tool after a minute or more.
_LONGEST_WAIT: Final = 50
#: Longest message, in bytes.
_MOST: Final = 1 << 20
_PARSE, _INVALID, _NO_METHOD, _BAD_PARAMETERS = -32700, -32600, -32601, -32602

_KINDS: Final = ["missing-secret", "blocked-host", "broken-tool", "unclear-task", "full-disk", "other"]

#: Asks the daemon: the request, and what it answered.
Ask = Callable[[dict[str, Any]], dict[str, Any]]


def _tool(name: str, description: str, required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"name": name, "description": description, "inputSchema": schema}


TOOLS: Final = [
    _tool(
        "progress", "Tell the operator in a sentence how far you are, whenever something of note is done.", ["text"],
        text={"type": "string", "maxLength": 500},
        percent={"type": "number", "minimum": 0, "maximum": 100},
    ),
    _tool(
        "complain", "Report what is wrong with your environment or your task, instead of working around it.",
        ["kind", "text"],
        kind={"type": "string", "enum": _KINDS},
        text={"type": "string", "maxLength": 4000, "description": "What you tried, and what happened."},
        about={"type": "string", "maxLength": 200, "description": "The one secret, host, tool or path it is about."},
    ),
    _tool(
        "ask", "Ask the operator. Without an answer in time you get the question's number; go on, and look later.",
        ["text"],
        text={"type": "string", "maxLength": 4000},
        wait={"type": "number", "minimum": 0, "maximum": _LONGEST_WAIT, "description": "Seconds to wait; 0: do not."},
    ),
    _tool(
        "answer", "The operator's answer to a question you asked.", ["question"],
        question={"type": "integer", "minimum": 1},
        wait={"type": "number", "minimum": 0, "maximum": _LONGEST_WAIT},
    ),
    _tool(
        "artifact", "Have a file or directory of the workspace kept when the task has ended.", ["path"],
        path={"type": "string", "maxLength": 1024},
    ),
    _tool("checkpoint", "Have your work and this session saved now, before something risky.", []),
    _tool("budget", "How much of models this task may still use.", []),
]  # fmt: skip
_BY_NAME: Final[dict[str, dict[str, Any]]] = {tool["name"]: tool["inputSchema"] for tool in TOOLS}
_TYPES: Final[dict[str, tuple[type, ...]]] = {"string": (str,), "number": (int, float), "integer": (int,)}


class FaultError(Exception):
    """A message that cannot be served, with a code of JSON-RPC 2.0."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Server:
    """Answers messages. It knows neither streams nor sockets."""

    def __init__(self, ask: Ask, *, version: str) -> None:
        """Take what asks the daemon (it raises as :func:`agentina.inside.door.ask`), and agentina's version."""
        self._ask = ask
        self._version = version
        self._methods: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "initialize": self._initialize,
            "ping": lambda _: {},
            "tools/list": lambda _: {"tools": TOOLS},
            "tools/call": self._call,
        }

    def respond(self, line: bytes) -> dict[str, Any] | None:
        """The answer to one message; None: there is none to give."""
        number = None
        try:
            message = _read(line)
            if message is None:
                return None
            number = message["id"]
            result = self._result(message["method"], message.get("params"))
        except FaultError as fault:
            return failure(number, fault.code, str(fault))
        return {"jsonrpc": "2.0", "id": number, "result": result}

    def _result(self, method: str, parameters: Any) -> dict[str, Any]:
        if method not in self._methods:
            raise FaultError(_NO_METHOD, f"there is no method {method[:80]!r}")
        if not isinstance(parameters, dict | None):
            raise FaultError(_BAD_PARAMETERS, "expected params to be an object")
        return self._methods[method](parameters or {})

    def _initialize(self, parameters: dict[str, Any]) -> dict[str, Any]:
        wished = parameters.get("protocolVersion")
        return {
            "protocolVersion": wished if wished in VERSIONS else VERSIONS[0],
            "capabilities": {"tools": {"listChanged": False}},
            "serverInfo": {"name": "agentina", "version": self._version},
            "instructions": "Tools to reach the people who gave you this task. Nobody reads what you print.",
        }

    def _call(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Call a tool."""
        name, arguments = parameters.get("name"), parameters.get("arguments") or {}
        _check(name, arguments)
        try:
            text, is_error = show(self._ask({"verb": name, **arguments}))
        except door.NoDoorError:
            text, is_error = "This host does not take what tasks say.", True
        except door.ClosedError as error:
            text, is_error = f"The daemon of this task does not answer ({error}). Go on, and try again later.", True
        except door.TooLongError as error:
            text, is_error = f"This is too long: {error}. Say it in fewer words.", True
        return {"content": [{"type": "text", "text": text}], "isError": is_error}


def _read(line: bytes) -> dict[str, Any] | None:
    """The request in a message; None: it is a notification, or an answer to nothing."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FaultError(_PARSE, "this is no JSON") from error
    if not isinstance(message, dict):
        raise FaultError(_INVALID, "expected an object")
    if "method" not in message and ("result" in message or "error" in message):
        return None
    number = message.get("id")
    if not isinstance(number, str | int | float | None) or isinstance(number, bool):
        raise FaultError(_INVALID, "expected an id that is text or a number")
    if not isinstance(message.get("method"), str):
        raise FaultError(_INVALID, "expected a method")
    return message if "id" in message else None


def _check(name: Any, arguments: Any) -> None:
    """Make sure that a call makes sense; the daemon looks closer."""
    if not isinstance(name, str) or name not in _BY_NAME:
        raise FaultError(_BAD_PARAMETERS, f"there is no tool {str(name)[:80]!r}")
    known, required = _BY_NAME[name]["properties"], _BY_NAME[name]["required"]
    if not isinstance(arguments, dict):
        raise FaultError(_BAD_PARAMETERS, "expected arguments to be an object")
    if not (set(required) <= arguments.keys() <= known.keys()):
        takes = f"{name} takes {', '.join(known) or 'nothing'}; it needs {', '.join(required) or 'nothing'}"
        raise FaultError(_BAD_PARAMETERS, takes)
    for key, value in arguments.items():
        if not isinstance(value, _TYPES[known[key]["type"]]) or isinstance(value, bool):
            raise FaultError(_BAD_PARAMETERS, f"expected {key} to be of type {known[key]['type']}")


def failure(number: Any, code: int, text: str) -> dict[str, Any]:
    """An error of JSON-RPC 2.0."""
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": text}}


def show(answer: dict[str, Any]) -> tuple[str, bool]:
    """A daemon's answer in words, and whether it is a refusal."""
    lines = [f"Notice: {notice}" for notice in answer.get("notices") or []]
    fault = answer.get("error")
    if fault:
        return "\n".join([*lines, f"{fault.get('message')} {fault.get('remedy')} [{fault.get('code')}]"]), True
    if answer.get("answer") is not None:
        lines.append(f"The operator answers: {answer['answer']}")
    elif answer.get("budget") is not None:
        lines.append(json.dumps(answer["budget"]))
    elif answer.get("text"):
        lines.append(answer["text"])
    return "\n".join(lines), False


def main(arguments: list[str]) -> int:
    """Serve until stdin ends."""
    import agentina  # noqa: PLC0415 - found by the path that was made above

    if len(arguments) != 2:  # noqa: PLR2004 - see the docstring
        sys.stderr.write("usage: toolserver.py SOCKET\n")
        return 2

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        # The agent is told soon; its command line would give the tool up.
        return door.ask(_from_here(request), path=arguments[1], patience=10.0)

    server = Server(ask, version=agentina.__version__)
    with contextlib.suppress(BrokenPipeError):
        for line in _lines():
            answer = server.respond(line) if line else failure(None, _INVALID, f"a message has at most {_MOST} bytes")
            if answer is not None:
                sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
                sys.stdout.buffer.flush()
    return 0


def _lines() -> Iterator[bytes]:
    """Messages as they come; an empty one stands for one that is too long."""
    source = sys.stdin.buffer
    while line := source.readline(_MOST):
        if len(line) == _MOST and not line.endswith(b"\n"):
            while (rest := source.readline(_MOST)) and not rest.endswith(b"\n"):
                pass
            yield b""
        elif not line.isspace():
            yield line


def _from_here(request: dict[str, Any]) -> dict[str, Any]:
    """Paths are meant from the directory the agent works in."""
    if request.get("verb") == "artifact":
        return {**request, "path": os.path.abspath(request["path"])}  # noqa: PTH100 - links are the daemon's to judge
    return request


if __name__ == "__main__":
    sys.exit(main(sys.argv))
