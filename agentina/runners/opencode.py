"""Runner ``opencode``: ``opencode run --format json`` (opencode.ai/docs/cli)."""

from __future__ import annotations

from typing import Any, Final

from agentina.protocol import jobs
from agentina.runners import agents

_CONFIG: Final = ".config/opencode/opencode.json"
_INSTRUCTIONS: Final = ".config/opencode/AGENTS.md"
_ENVIRONMENT: Final = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
}
#: Addresses of the providers' APIs; opencode puts variables into its configuration.
_ADDRESSES: Final = {"anthropic": "{env:ANTHROPIC_BASE_URL}/v1", "openai": "{env:OPENAI_BASE_URL}"}
_PRELUDE: Final = """\
: "${ANTHROPIC_BASE_URL:=https://api.anthropic.com}" "${OPENAI_BASE_URL:=https://api.openai.com/v1}"
export ANTHROPIC_BASE_URL OPENAI_BASE_URL
"""


def invoke(wish: agents.Wish) -> agents.Invocation:
    """How it is called."""
    payload = wish.payload
    call = agents.Invocation(
        arguments=[
            "run", "--format", "json",
            # Without one it asks the model for a title.
            "--title", "job",
            *agents.option("--model", payload.model),
            *agents.option("--session", payload.resume),
        ],
        environment=dict(_ENVIRONMENT),
        files={_CONFIG: agents.to_json(_config(wish.payload))},
        prelude=_PRELUDE,
    )  # fmt: skip
    if payload.system_prompt is not None:
        call.files[_INSTRUCTIONS] = payload.system_prompt
    return call


def _config(payload: jobs.Payload) -> dict[str, Any]:
    config: dict[str, Any] = {"autoupdate": False, "share": "disabled", "permission": "allow"}
    model = payload.model
    if model is not None:
        provider, slash, name = model.partition("/")
        if not slash or not name:
            raise agents.refuse("model", f"opencode expects provider/model, not {model!r}")
        config |= {"model": model, "small_model": model, "provider": {provider: _provider(provider, name)}}
    if payload.mcp_servers:
        config["mcp"] = {name: _server(server) for name, server in payload.mcp_servers.items()}
    return config


def _provider(provider: str, model: str) -> dict[str, Any]:
    if provider in _ADDRESSES:
        return {"models": {model: {}}, "options": {"baseURL": _ADDRESSES[provider]}}
    # Any other is taken to speak as OpenAI does.
    return {
        "npm": "@ai-sdk/openai-compatible",
        "models": {model: {}},
        "options": {"baseURL": _ADDRESSES["openai"], "apiKey": "{env:OPENAI_API_KEY}"},
    }


def _server(server: jobs.McpServer) -> dict[str, Any]:
    if server.command is None:
        return {"type": "remote", "url": server.url, "headers": jobs.plain_values(server.headers)}
    return {"type": "local", "command": server.command, "environment": jobs.plain_values(server.environment)}
