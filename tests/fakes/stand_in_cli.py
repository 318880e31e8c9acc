#!/usr/bin/python3
"""Stands in for the command lines of AI agents where the real ones cannot be had: one file, standard library only.

By its name it is ``claude`` or ``codex``: it asks a model by the API of that one (Anthropic Messages, OpenAI Responses,
streamed), runs the shell commands the model wants, says so in that one's stream of events, and repeats a call whose
answer breaks off, as they do. What it keeps of it is a log in its home, with the request's headers.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Calls of one question, and seconds between them: as often as the real ones ask, which leave minutes between.
TRIES, PAUSE = 10, 0.05
TOO_MANY, FAULT = 429, 500
NAME = Path(sys.argv[0]).name
SESSION = "4f2c6a52-5a0f-4d11-9d0c-1f0f5a3b7c11"
LOG = Path.home() / f".{NAME}.log"


def main() -> None:
    """Answer the prompt on stdin."""
    answer, failed = {"claude": (claude, claude_failed), "codex": (codex, codex_failed)}[NAME]
    try:
        answer(sys.stdin.read())
    except GaveUpError as error:
        failed(str(error))
        sys.exit(1)


def say(event: dict[str, Any]) -> None:
    """Print one event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class GaveUpError(Exception):
    """The model cannot be asked."""


def ask(url: str, headers: dict[str, str], document: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of the model's answer."""
    with LOG.open("a") as log:
        log.write(f"{url} {headers}\n")
    problem = ""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE)
        request = urllib.request.Request(url, json.dumps(document).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return list(events_of(answer))
        except urllib.error.HTTPError as error:
            problem = f"API Error: {error.code} {error.read().decode()}"
            if error.code != TOO_MANY and error.code < FAULT:
                break
        except (OSError, http.client.HTTPException):
            problem = "API Error: no connection"
    raise GaveUpError(problem)


def events_of(answer: Any) -> Iterator[dict[str, Any]]:
    """Server-sent events; an answer without its last one has broken off."""
    event: dict[str, Any] = {}
    for line in answer:
        try:
            found = json.loads(line[6:]) if line.startswith(b"data: ") else None
        except ValueError:
            continue
        if isinstance(found, dict) and "type" in found:
            event = found
            yield event
    if event.get("type") not in {"message_stop", "response.completed"}:
        raise http.client.IncompleteRead(b"")


def run(command: str) -> tuple[int, str]:
    """What a shell says."""
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def claude(prompt: str) -> None:
    """As Claude Code does."""
    headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01"}
    url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages?beta=true"
    used = {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 0}
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    session = {"session_id": SESSION}
    say({"type": "system", "subtype": "init", "cwd": str(Path.cwd()), "model": "claude-haiku-4-5", **session})
    for turn in range(1, 100):
        document = {
            "model": "claude-haiku-4-5", "stream": True, "max_tokens": 1000, "messages": messages,
            "tools": [{"name": "Bash", "input_schema": {"type": "object"}}],
        }  # fmt: skip
        events = ask(url, headers, document)
        block = next(event for event in events if event["type"] == "content_block_start")["content_block"]
        delta = next(event for event in events if event["type"] == "content_block_delta")["delta"]
        for found in (events[0]["message"]["usage"], {"output_tokens": events[-2]["usage"]["output_tokens"] - 1}):
            used = {name: count + found.get(name, 0) for name, count in used.items()}
        text = delta.get("text", "")
        if block["type"] == "tool_use":
            block = {**block, "input": json.loads(delta["partial_json"])}
        else:
            block = {**block, "text": text}
        message = {"role": "assistant", "content": [block]}
        say({"type": "assistant", "message": {"model": "claude-haiku-4-5", **message}, **session})
        if block["type"] == "text":
            end = {"result": text, "num_turns": turn, "usage": used, **session}
            say({"type": "result", "subtype": "success", "is_error": False, **end})
            return
        code, output = run(block["input"]["command"])
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": output, "is_error": code != 0}
        messages += [message, {"role": "user", "content": [result]}]
        say({"type": "user", "message": messages[-1], **session})


def claude_failed(problem: str) -> None:
    """As Claude Code gives up."""
    end = {"result": problem, "num_turns": 1, "usage": {"input_tokens": 0, "output_tokens": 0}}
    say({"type": "result", "subtype": "success", "is_error": True, "session_id": SESSION, **end})


def codex_failed(problem: str) -> None:
    """As Codex gives up."""
    say({"type": "error", "message": problem})
    say({"type": "turn.failed", "error": {"message": problem}})


def codex(prompt: str) -> None:
    """As Codex does."""
    headers = {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    base = next(word.partition("=")[2] for word in sys.argv if word.startswith("model_providers.agentina.base_url="))
    url = json.loads(base) + "/responses"
    asked: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": prompt}]
    used = {"input_tokens": 0, "cached_input_tokens": 0, "output_tokens": 0}
    thread = "01a1fd27-a813-7183-8d00-c947d8172d57"
    say({"type": "thread.started", "thread_id": thread})
    say({"type": "turn.started"})
    for number in range(1, 100):
        document = {"model": "gpt-test", "stream": True, "input": asked, "tools": [{"name": "exec_command"}]}
        document |= {"prompt_cache_key": thread, "client_metadata": {"session_id": thread, "thread_id": thread}}
        whole = ask(url, headers, document)[-1]["response"]
        usage = whole["usage"]
        found = (usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"])
        used = {name: count + more for (name, count), more in zip(used.items(), found, strict=True)}
        item = whole["output"][0]
        if item["type"] == "message":
            text = item["content"][0]["text"]
            said = {"id": f"item_{number}", "type": "agent_message", "text": text}
            say({"type": "item.completed", "item": said})
            say({"type": "turn.completed", "usage": used})
            return
        command = json.loads(item["arguments"])["cmd"]
        shown = {"id": f"item_{number}", "type": "command_execution", "command": command}
        say({"type": "item.started", "item": {**shown, "status": "in_progress", "exit_code": None}})
        code, output = run(command)
        say({"type": "item.completed", "item": {**shown, "exit_code": code, "aggregated_output": output}})
        asked += [item, {"type": "function_call_output", "call_id": item["call_id"], "output": output}]


if __name__ == "__main__":
    main()
