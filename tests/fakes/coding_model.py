"""A model that does one thing: it has a shell command run, and says that it is done. Answers real command lines."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.fakes import model_provider

ANSWER: Final = "Done: the test passes."
#: The tools by which command lines run shell commands, and their arguments.
_SHELLS: Final = ("Bash", "bash", "exec_command", "shell_command", "exec", "run_shell_command")


class CodingModel(model_provider.ModelProvider):
    """Speaks Anthropic Messages and OpenAI Responses, as completely as the command lines need it."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self.command = command

    def events(self, kind: str, fresh: int, cached: int, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """See :meth:`model_provider.ModelProvider.events`."""
        if kind == "messages":
            return self._messages(fresh, cached, asked)
        assert kind == "responses", kind
        return self._responses(fresh, cached, asked)

    def _call(self, tools: set[str]) -> tuple[str, Any]:
        """The shell tool, and what it is given."""
        name = next(shell for shell in _SHELLS if shell in tools)
        if name == "exec":  # takes a program in JavaScript
            return name, f"const r = await tools.exec_command({{cmd: {json.dumps(self.command)}}}); text(r);"
        return name, {"cmd" if name == "exec_command" else "command": self.command}

    def _messages(self, fresh: int, cached: int, asked: dict[str, Any]) -> list[dict[str, Any]]:
        usage = {"input_tokens": fresh, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}
        last = asked["messages"][-1]["content"]
        has_run = isinstance(last, list) and any(block.get("type") == "tool_result" for block in last)
        tools = {tool["name"] for tool in asked.get("tools", [])}
        if has_run or not tools:
            block: dict[str, Any] = {"type": "text", "text": ANSWER}
            empty, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": ANSWER}
        else:
            name, arguments = self._call(tools)
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
        if any(str(item.get("type", "")).endswith("_call_output") for item in asked["input"]):
            item: dict[str, Any] = {
                "type": "message", "id": "msg_1", "role": "assistant",
                "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
            }  # fmt: skip
        else:
            name, arguments = self._call(_tools_of(asked))
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


def _tools_of(asked: dict[str, Any]) -> set[str]:
    """Names of the tools; newer models of Codex get them as an item of the input, some within namespaces."""
    listed = list(asked.get("tools") or [])
    for item in asked["input"]:
        if item.get("type") == "additional_tools":
            for tool in item.get("tools", []):
                listed += tool.get("tools") or [tool]
    return {str(tool.get("name")) for tool in listed}
