"""Runner ``codex``: Codex, ``codex exec --json`` (developers.openai.com/codex/noninteractive)."""

from __future__ import annotations

import json
from typing import Any, Final

from agentina.protocol import jobs
from agentina.runners import agents, contract

_CONFIG: Final = ".codex/config.toml"
_INSTRUCTIONS: Final = ".codex/AGENTS.md"
#: The variable with the key for the model.
_KEY: Final = "OPENAI_API_KEY"
#: Its built-in provider takes no notice of OPENAI_BASE_URL.
_PRELUDE: Final = """\
if [ -n "${OPENAI_BASE_URL-}" ]; then
  program=$1; shift
  set -- "$program" -c model_provider=agentina -c "model_providers.agentina.base_url=\\"$OPENAI_BASE_URL\\"" "$@"
fi
"""


def sessions(place: contract.Place) -> str:  # noqa: ARG001 - the same everywhere
    """Where its rollouts are. Its databases name them by absolute paths: it makes new ones elsewhere."""
    return ".codex/sessions"


def invoke(wish: agents.Wish) -> agents.Invocation:
    """How it is called. Its own sandbox is off: the executor contains it, and there it often cannot be made."""
    payload = wish.payload
    call = agents.Invocation(
        arguments=[
            "exec", *(["resume"] if payload.resume is not None else []),
            "--json", "--dangerously-bypass-approvals-and-sandbox", "--skip-git-repo-check",
            *agents.option("-m", payload.model),
            *([payload.resume] if payload.resume is not None else []),
            "-",
        ],
        files={_CONFIG: _config(wish)},
        environment={"CODEX_HOME": wish.path(".codex")},
        prelude=_PRELUDE,
    )  # fmt: skip
    if payload.system_prompt is not None:
        call.files[_INSTRUCTIONS] = payload.system_prompt
    return call


def _config(wish: agents.Wish) -> str:
    lines = [
        "check_for_update_on_startup = false",
        _table("analytics", enabled=False),
        _table("features", plugins=False),
        # Commands that it starts get the job's variables, but not the key.
        _table("shell_environment_policy", inherit="all", exclude=[_KEY, "CODEX_API_KEY"]),
        _table(
            "model_providers.agentina",
            name="agentina",
            env_key=_KEY,
            wire_api="responses",
            supports_websockets=False,
        ),
    ]
    for name, server in wish.payload.mcp_servers.items():
        lines.append(_table(f"mcp_servers.{name}", **_server(server)))
    return "\n".join(lines) + "\n"


def _server(server: jobs.McpServer) -> dict[str, Any]:
    if server.command is None:
        return {"url": server.url, "http_headers": jobs.plain_values(server.headers)}
    program, *arguments = server.command
    return {"command": program, "args": arguments, "env": jobs.plain_values(server.environment)}


def _table(title: str, /, **values: Any) -> str:
    return "\n".join([f"[{title}]", *(f"{key} = {_toml(value)}" for key, value in values.items())])


def _toml(value: Any) -> str:
    """``value`` in TOML 1.0, whose basic strings are JSON's but for U+007F, which has to be escaped too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
