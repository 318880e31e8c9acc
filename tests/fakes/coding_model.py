"""A model that has tools used, one after the other, a shell last, and then is done. Answers real command lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from tests.fakes import model_provider

ANSWER: Final = "Done: the test passes."
#: The tools by which command lines run shell commands, and their arguments.
_SHELLS: Final = ("Bash", "bash", "exec_command", "shell_command", "exec", "run_shell_command")
#: Before the names of a server's tools, as each command line has them.
_SERVER: Final = ("mcp__agentina__", "agentina_", "mcp_agentina_")


class CodingModel(model_provider.ModelProvider):
    """Speaks Anthropic Messages, OpenAI Responses and Gemini, as completely as the command lines need it."""

    def __init__(self, command: str) -> None:
        super().__init__()
        #: What it has the shell do last; empty: nothing.
        self.command = command
        #: Tools of agentina's server that it uses before, with their arguments.
        self.verbs: list[tuple[str, dict[str, Any]]] = []

    def events(self, kind: str, fresh: int, cached: int, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """See :meth:`model_provider.ModelProvider.events`."""
        made = {"messages": self._messages, "responses": self._responses, "gemini": self._gemini}
        return made[kind](fresh, cached, asked)

    def _call(self, tools: set[str], step: int) -> tuple[str, Any] | None:
        """The tool to use after ``step`` others, and what it is given; None: all is done."""
        if tools and step < len(self.verbs):
            return _verb(tools, *self.verbs[step])
        shell = next((shell for shell in _SHELLS if shell in tools), None)
        if shell is None or step > len(self.verbs) or not self.command:
            return None
        if shell == "exec":  # takes a program in JavaScript
            return shell, f"const r = await tools.exec_command({{cmd: {json.dumps(self.command)}}}); text(r);"
        key = "cmd" if shell == "exec_command" else "command"
        return shell, {key: self.command, **({"description": "Fix it"} if shell == "bash" else {})}

    def _messages(self, fresh: int, cached: int, asked: dict[str, Any]) -> list[dict[str, Any]]:
        usage = {"input_tokens": fresh, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}
        results = (_results_of(message["content"], "tool_result") for message in reversed(asked["messages"]))
        call = self._call({tool["name"] for tool in asked.get("tools", [])}, _trailing(results))
        if call is None:
            block: dict[str, Any] = {"type": "text", "text": ANSWER}
            empty, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": ANSWER}
        else:
            name, arguments = call
            block = {"type": "tool_use", "id": f"toolu_{len(self.asked)}", "name": name, "input": arguments}
            empty, delta = block | {"input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(arguments)}
        stop = "end_turn" if block["type"] == "text" else "tool_use"
        message = {
            "id": f"msg_{len(self.asked)}", "type": "message", "role": "assistant", "model": asked["model"],
            "content": [], "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1},
        }  # fmt: skip
        return [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": empty},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": self.output}},
            {"type": "message_stop"},
            {**message, "content": [block], "stop_reason": stop, "usage": {**usage, "output_tokens": self.output}},
        ]

    def _responses(self, fresh: int, cached: int, asked: dict[str, Any]) -> list[dict[str, Any]]:
        usage = {
            "input_tokens": fresh + cached, "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": self.output, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": fresh + cached + self.output,
        }  # fmt: skip
        step = sum(str(item.get("type", "")).endswith("_call_output") for item in asked["input"])
        call = self._call(_tools_of(asked), step)
        if call is None:
            item: dict[str, Any] = {
                "type": "message", "id": "msg_1", "role": "assistant",
                "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
            }  # fmt: skip
        else:
            name, arguments = call
            item = {"id": "fc_1", "call_id": f"call_{len(self.asked)}", "name": name, "status": "completed"}
            if isinstance(arguments, str):
                item |= {"type": "custom_tool_call", "input": arguments}
            else:
                item |= {"type": "function_call", "arguments": json.dumps(arguments)}
        answer = {"id": "resp_1", "object": "response", "created_at": 1, "model": asked["model"], "output": []}
        whole = {**answer, "status": "completed", "output": [item], "usage": usage}
        return [
            {"type": "response.created", "response": {**answer, "status": "in_progress", "usage": None}},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": whole},
            whole,
        ]

    def _gemini(self, fresh: int, cached: int, asked: dict[str, Any]) -> list[dict[str, Any]]:
        usage = {
            "promptTokenCount": fresh + cached, "cachedContentTokenCount": cached,
            "candidatesTokenCount": self.output, "totalTokenCount": fresh + cached + self.output,
        }  # fmt: skip
        results = (
            sum("functionResponse" in part for part in content.get("parts", []))
            for content in reversed(asked["contents"])
            if content.get("role") != "model"
        )
        listed = [one for tool in asked.get("tools", []) for one in tool.get("functionDeclarations", [])]
        call = self._call({str(one.get("name")) for one in listed}, _trailing(results))
        part: dict[str, Any] = {"text": ANSWER}
        if call is not None:
            part = {"functionCall": {"name": call[0], "args": call[1]}}
        whole = {"content": {"role": "model", "parts": [part]}, "index": 0}
        end = {"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP", "index": 0}
        return [
            {"candidates": [{"content": {"role": "model", "parts": [{"text": ""}]}, "index": 0}]},
            {"candidates": [whole]},
            {"candidates": [end], "usageMetadata": usage},
            {"candidates": [{**whole, "finishReason": "STOP"}], "usageMetadata": usage},
        ]


def _verb(tools: set[str], verb: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    """A tool of agentina's server, by the name that the command line has for it."""
    name = next((before + verb for before in _SERVER if before + verb in tools), None)
    if name is not None:
        return name, arguments
    assert "exec" in tools, sorted(tools)
    return "exec", f"const r = await tools.mcp__agentina__{verb}({json.dumps(arguments)}); text(r);"


def _results_of(content: Any, kind: str) -> int:
    """How many results of tools a message has; -1: it is the model's own."""
    if not isinstance(content, list):
        return 0
    if any(block.get("type") == "tool_use" for block in content):
        return -1
    return sum(block.get("type") == kind for block in content)


def _trailing(results: Iterable[int]) -> int:
    """How many results there are since the last message without one, from the newest back; -1 does not count."""
    total = 0
    for number in results:
        if number == 0:
            break
        total += max(number, 0)
    return total


def _tools_of(asked: dict[str, Any]) -> set[str]:
    """Names of the tools; newer models of Codex get them as an item of the input, some within namespaces."""
    listed = list(asked.get("tools") or [])
    for item in asked["input"]:
        if item.get("type") == "additional_tools":
            for tool in item.get("tools", []):
                listed += tool.get("tools") or [tool]
    return {str(tool.get("name")) for tool in listed}
