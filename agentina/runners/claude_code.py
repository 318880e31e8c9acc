"""Runner ``claude-code``: Claude Code, ``claude -p`` (code.claude.com/docs/en/headless)."""

from __future__ import annotations

import re
from typing import Any, Final

from agentina.protocol import jobs
from agentina.runners import agents, contract

_ENVIRONMENT: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
}
_INSTRUCTIONS: Final = f"{agents.OWN}/instructions.md"
#: Where its tool servers are described.
SERVERS: Final = f"{agents.OWN}/mcp.json"


#: Longer names of directories it makes in another way.
_LONGEST: Final = 200


def sessions(place: contract.Place) -> str:
    """Where its transcripts are: named for the directory that it works in."""
    name = re.sub(r"[^A-Za-z0-9]", "-", str(place.workspace))
    return f".claude/projects/{name}" if len(name) <= _LONGEST else ""


def invoke(wish: agents.Wish) -> agents.Invocation:
    """How it is called."""
    payload = wish.payload
    call = agents.Invocation(
        arguments=[
            "-p", "--output-format", "stream-json", "--verbose",
            *agents.option("--model", payload.model),
            *agents.option("--max-turns", payload.max_turns),
            *agents.option("--resume", payload.resume),
        ],
        environment=dict(_ENVIRONMENT),
    )  # fmt: skip
    if payload.allowed_tools is None:
        call.arguments.append("--dangerously-skip-permissions")
        # It refuses that to root unless told that it is contained, which is the executor's business here.
        call.environment["IS_SANDBOX"] = "1"
    elif payload.allowed_tools:
        tools = [*payload.allowed_tools, *([f"mcp__{agents.SERVER}"] if agents.SERVER in payload.mcp_servers else [])]
        call.arguments.append(f"--allowedTools={','.join(tools)}")
    else:
        call.arguments.append("--tools=")
    if payload.system_prompt is not None:
        call.files[_INSTRUCTIONS] = payload.system_prompt
        call.arguments += ["--append-system-prompt-file", wish.path(_INSTRUCTIONS)]
    if payload.mcp_servers:
        call.files[SERVERS] = servers(payload)
        # The form with "=": the option takes several values, and would take what follows too.
        call.arguments += [f"--mcp-config={wish.path(SERVERS)}", "--strict-mcp-config"]
    return call


def servers(payload: jobs.Payload) -> str:
    """The file that describes the tool servers."""
    described = {name: _server(server) for name, server in payload.mcp_servers.items()}
    if agents.SERVER in described:
        # Those of others it names only, until it looks for one; an agent in trouble should not have to think of that.
        described[agents.SERVER]["alwaysLoad"] = True
    return agents.to_json({"mcpServers": described})


def _server(server: jobs.McpServer) -> dict[str, Any]:
    if server.command is None:
        return {"type": "http", "url": server.url, "headers": jobs.plain_values(server.headers)}
    program, *arguments = server.command
    return {"command": program, "args": arguments, "env": jobs.plain_values(server.environment)}
