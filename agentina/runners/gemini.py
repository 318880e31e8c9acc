"""Runner ``gemini``: Gemini CLI, ``gemini --output-format stream-json`` (geminicli.com/docs/cli/headless)."""

from __future__ import annotations

from typing import Any, Final

from agentina.protocol import jobs
from agentina.runners import agents

_CONFIG: Final = ".gemini/settings.json"
_INSTRUCTIONS: Final = ".gemini/GEMINI.md"
#: Without the first its worker is a child of a process that ignores SIGTERM.
_ENVIRONMENT: Final = {"GEMINI_CLI_NO_RELAUNCH": "true", "NO_COLOR": "1"}


def invoke(wish: agents.Wish) -> agents.Invocation:
    """How it is called. With stdin that is no terminal it takes the prompt from there."""
    payload = wish.payload
    call = agents.Invocation(
        arguments=[
            "--output-format", "stream-json", "--skip-trust", "--approval-mode", "yolo",
            *agents.option("--model", payload.model),
            *agents.option("--resume", payload.resume),
        ],
        environment=dict(_ENVIRONMENT),
        files={_CONFIG: agents.to_json(_config(payload))},
    )  # fmt: skip
    if payload.system_prompt is not None:
        call.files[_INSTRUCTIONS] = payload.system_prompt
    return call


def _config(payload: jobs.Payload) -> dict[str, Any]:
    config: dict[str, Any] = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False},
    }
    if payload.allowed_tools is not None:
        # The others do not exist for it. Its --allowed-tools only spares a question, and not always.
        config["tools"] = {"core": payload.allowed_tools}
    if payload.max_turns is not None:
        config["model"] = {"maxSessionTurns": payload.max_turns}
    if payload.mcp_servers:
        config["mcpServers"] = {name: _server(server) for name, server in payload.mcp_servers.items()}
    return config


def _server(server: jobs.McpServer) -> dict[str, Any]:
    if server.command is None:
        return {"httpUrl": server.url, "headers": jobs.plain_values(server.headers)}
    program, *arguments = server.command
    return {"command": program, "args": arguments, "env": jobs.plain_values(server.environment)}
