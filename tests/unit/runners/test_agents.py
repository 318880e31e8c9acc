from __future__ import annotations

import json
import subprocess
import tomllib
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.protocol import jobs
from agentina.runners import agents, contract, described, registry
from agentina.runners.streams import formats

SERVERS = {
    "files": {
        "command": ["mcp-files", "--root", "."],
        "environment": {"FILES_TOKEN": "sesame-open\x7f", "A": 'q"\\é😀'},
    },
    "web": {"url": "https://mcp.example/x", "headers": {"Authorization": {"secret": "Bearer abcdefgh"}}},
}
#: A payload with everything that all runners take.
FULL = {"prompt": "fix it", "system_prompt": "be brief", "resume": "s-1", "mcp_servers": SERVERS}
PLACE = contract.Place(workspace=Path("/t/workspace"), home=Path("/t/home"))


def job(runner: str, payload: dict[str, Any], **fields: Any) -> jobs.JobSpec:
    return jobs.parse_job({"name": "x", "runner": runner, "payload": payload, **fields})


def plan(runner: str, payload: dict[str, Any], **fields: Any) -> contract.Plan:
    return registry.make(runner, described.Description()).plan(job(runner, payload, **fields), place=PLACE)


def arguments(made: contract.Plan) -> list[str]:
    """The command line's own arguments."""
    assert made.argv[:2] == ["/bin/sh", "-c"]
    assert made.argv[2].endswith('exec "$@" <"$0"')
    return made.argv[5:]


# --- claude-code ----------------------------------------------------------------------------------------------------


def test_claude_code_with_the_least() -> None:
    made = plan("claude-code", {"prompt": "fix it"})
    assert made.argv[3:5] == ["/t/home/.agentina/prompt.md", "claude"]
    assert arguments(made) == [
        "-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions",
    ]  # fmt: skip
    assert made.files == {".agentina/prompt.md": "fix it"}
    assert made.environment["IS_SANDBOX"] == made.environment["DISABLE_AUTOUPDATER"] == "1"
    assert (made.oom, made.verify) == ("continue", None)


def test_claude_code_with_everything() -> None:
    payload = {**FULL, "model": "claude-opus-4-8[1m]", "max_turns": 7, "allowed_tools": ["Bash(git *)", "Edit"]}
    made = plan("claude-code", payload, verify={"script": "make test"})
    assert arguments(made) == [
        "-p", "--output-format", "stream-json", "--verbose", "--model", "claude-opus-4-8[1m]", "--max-turns", "7",
        "--resume", "s-1", "--allowedTools=Bash(git *),Edit",
        "--append-system-prompt-file", "/t/home/.agentina/instructions.md",
        "--mcp-config=/t/home/.agentina/mcp.json", "--strict-mcp-config",
    ]  # fmt: skip
    assert made.files[".agentina/instructions.md"] == "be brief"
    assert json.loads(made.files[".agentina/mcp.json"])["mcpServers"] == {
        "files": {
            "command": "mcp-files", "args": ["--root", "."], "env": {"FILES_TOKEN": "sesame-open\x7f", "A": 'q"\\é😀'},
        },
        "web": {"type": "http", "url": "https://mcp.example/x", "headers": {"Authorization": "Bearer abcdefgh"}},
    }  # fmt: skip
    assert "IS_SANDBOX" not in made.environment
    assert made.verify == ["/bin/sh", "-ec", "make test"]


def test_claude_code_is_told_of_the_verbs_at_once() -> None:
    """Tools of other servers it has to look for."""
    place = contract.Place(workspace=PLACE.workspace, home=PLACE.home, door="/t/door")
    runner = registry.make("claude-code", described.Description())
    made = runner.plan(job("claude-code", FULL), place=place)
    servers = json.loads(made.files[".agentina/mcp.json"])["mcpServers"]
    assert {name: server.get("alwaysLoad") for name, server in servers.items()} == {
        "files": None, "web": None, "agentina": True,
    }  # fmt: skip
    assert servers["agentina"]["args"][-1] == "/t/door"


def test_claude_code_without_any_tool() -> None:
    assert "--tools=" in arguments(plan("claude-code", {"prompt": "x", "allowed_tools": []}))


# --- codex ----------------------------------------------------------------------------------------------------------


def test_codex_with_everything() -> None:
    made = plan("codex", {**FULL, "model": "gpt-6"})
    assert arguments(made) == [
        "exec", "resume", "--json", "--dangerously-bypass-approvals-and-sandbox", "--skip-git-repo-check",
        "-m", "gpt-6", "s-1", "-",
    ]  # fmt: skip
    assert made.environment["CODEX_HOME"] == "/t/home/.codex"
    assert made.files[".codex/AGENTS.md"] == "be brief"
    config = tomllib.loads(made.files[".codex/config.toml"])
    assert config["model_providers"]["agentina"]["env_key"] == "OPENAI_API_KEY"
    assert config["mcp_servers"] == {
        "files": {
            "command": "mcp-files", "args": ["--root", "."], "env": {"FILES_TOKEN": "sesame-open\x7f", "A": 'q"\\é😀'},
        },
        "web": {"url": "https://mcp.example/x", "http_headers": {"Authorization": "Bearer abcdefgh"}},
    }  # fmt: skip
    assert "OPENAI_API_KEY" in config["shell_environment_policy"]["exclude"]


def test_codex_with_the_least() -> None:
    made = plan("codex", {"prompt": "fix it"})
    assert arguments(made)[:2] == ["exec", "--json"]
    assert arguments(made)[-1] == "-"
    assert "model_provider" not in tomllib.loads(made.files[".codex/config.toml"])


# --- opencode and gemini --------------------------------------------------------------------------------------------


def test_opencode_with_everything() -> None:
    made = plan("opencode", {**FULL, "model": "lab/fake-1"})
    assert arguments(made) == [
        "run", "--format", "json", "--title", "job", "--model", "lab/fake-1", "--session", "s-1",
    ]  # fmt: skip
    config = json.loads(made.files[".config/opencode/opencode.json"])
    assert config["permission"] == "allow"
    assert config["provider"]["lab"]["options"]["baseURL"] == "{env:OPENAI_BASE_URL}"
    assert config["mcp"]["files"]["command"] == ["mcp-files", "--root", "."]
    assert config["mcp"]["web"]["type"] == "remote"
    assert made.files[".config/opencode/AGENTS.md"] == "be brief"


@pytest.mark.parametrize(
    ("runner", "variables", "words"),
    [
        ("codex", {}, "exec --json"),
        (
            "codex", {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"},
            '-c model_provider=agentina -c model_providers.agentina.base_url="http://127.0.0.1:1/v1" exec --json',
        ),
        ("opencode", {}, "https://api.anthropic.com https://api.openai.com/v1"),
        ("opencode", {"OPENAI_BASE_URL": "http://h/v1"}, "https://api.anthropic.com http://h/v1"),
        ("claude-code", {"OPENAI_BASE_URL": "http://h/v1"}, "-p --output-format"),
    ],
)  # fmt: skip
def test_address_of_the_model_is_taken_inside_the_task(
    runner: str, variables: dict[str, str], words: str, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "$@"; echo "$ANTHROPIC_BASE_URL $OPENAI_BASE_URL"\n')
    program.chmod(0o755)
    made = registry.make(runner, described.Description(program=str(program))).plan(
        job(runner, {"prompt_file": "prompt"}), place=contract.Place(workspace=tmp_path, home=tmp_path)
    )
    (tmp_path / "prompt").touch()
    done = subprocess.run(made.argv, capture_output=True, text=True, check=True, env=variables)
    assert any(line.startswith(words) for line in done.stdout.splitlines()), done.stdout


def test_opencode_needs_a_provider_before_the_model() -> None:
    with pytest.raises(errors.AgentinaError) as refused:
        plan("opencode", {"prompt": "x", "model": "fake-1"})
    assert refused.value.context["where"] == "job.payload.model"


def test_gemini_with_everything() -> None:
    made = plan("gemini", {**FULL, "model": "gemini-2.5-flash", "max_turns": 3, "allowed_tools": ["read_file"]})
    assert arguments(made) == [
        "--output-format", "stream-json", "--skip-trust", "--approval-mode", "yolo", "--model", "gemini-2.5-flash",
        "--resume", "s-1",
    ]  # fmt: skip
    config = json.loads(made.files[".gemini/settings.json"])
    assert config["tools"] == {"core": ["read_file"]}
    assert config["model"]["maxSessionTurns"] == 3
    assert config["mcpServers"]["web"]["httpUrl"] == "https://mcp.example/x"
    assert made.files[".gemini/GEMINI.md"] == "be brief"
    assert "tools" not in json.loads(plan("gemini", {"prompt": "x"}).files[".gemini/settings.json"])


# --- all of them ----------------------------------------------------------------------------------------------------

RUNNERS = ["claude-code", "codex", "gemini", "opencode"]


@pytest.mark.parametrize("runner", RUNNERS)
def test_nothing_that_could_be_secret_is_in_argv(runner: str) -> None:
    made = plan(runner, FULL)
    for text in ("fix it", "be brief", "sesame-open", "abcdefgh"):
        assert not any(text in part for part in made.argv)
        assert text not in repr(made)


@pytest.mark.parametrize("runner", RUNNERS)
def test_prompt_comes_from_stdin_whatever_its_size(runner: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ncat\n")
    program.chmod(0o755)
    prompt = "é'\"$(x)\n" * 25_000
    place = contract.Place(workspace=tmp_path, home=tmp_path / "home")
    made = registry.make(runner, described.Description(program=str(program))).plan(
        job(runner, {"prompt": prompt}), place=place
    )
    for name, content in made.files.items():
        path = place.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    done = subprocess.run(made.argv, capture_output=True, text=True, check=True)
    assert done.stdout == prompt


def test_prompt_may_be_a_file_of_the_workspace() -> None:
    made = plan("claude-code", {"prompt_file": "docs/task.md"})
    assert made.argv[3] == "/t/workspace/docs/task.md"
    assert agents.PROMPT not in made.files


# --- described in a file --------------------------------------------------------------------------------------------

ADA = {
    "program": "/opt/ada",
    "arguments": [
        "run", ["--model", "{model}"], ["--turns", "{max_turns}"], "--session={resume}", ["--task", "{prompt_file}"],
        ["--tools", "{allowed_tools}"], ["--mcp", "{mcp_config_file}"], ["--system", "{system_prompt_file}"], "{{x}}",
    ],
    "prompt": "file",
    "stream": "codex",
    "environment": {"ADA": "1"},
}  # fmt: skip


def ada(payload: dict[str, Any]) -> contract.Plan:
    return described.make("ada", described.parse(ADA, "ada.yaml")).plan(job("ada", payload), place=PLACE)


def test_described_runner_leaves_out_what_has_no_value() -> None:
    made = ada({"prompt": "x"})
    assert made.argv[3:] == ["/dev/null", "/opt/ada", "run", "--task", "/t/home/.agentina/prompt.md", "{x}"]
    assert made.environment == {"ADA": "1"}


def test_described_runner_takes_everything() -> None:
    made = ada({**FULL, "model": "m", "max_turns": 2, "allowed_tools": ["a", "b"]})
    assert made.argv[5:] == [
        "run", "--model", "m", "--turns", "2", "--session=s-1", "--task", "/t/home/.agentina/prompt.md",
        "--tools", "a,b", "--mcp", "/t/home/.agentina/mcp.json", "--system", "/t/home/.agentina/instructions.md", "{x}",
    ]  # fmt: skip
    assert set(made.files) == {".agentina/prompt.md", ".agentina/mcp.json", ".agentina/instructions.md"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", "m"), ("max_turns", 1), ("resume", "s"), ("system_prompt", "s"), ("mcp_servers", SERVERS),
     ("allowed_tools", [])],
)  # fmt: skip
def test_what_has_no_place_is_refused(key: str, value: Any) -> None:
    runner = described.make("ada", described.parse({}, "ada.yaml"))
    with pytest.raises(errors.AgentinaError) as refused:
        runner.plan(job("ada", {"prompt": "x", key: value}), place=PLACE)
    assert refused.value.context["where"] == f"job.payload.{key}"


@pytest.mark.parametrize(
    ("document", "code", "word"),
    [
        ({"programm": "x"}, "INPUT_UNKNOWN_KEY", "'program'"),
        ({"arguments": ["{modell}"]}, "INPUT_INVALID", "modell"),
        ({"arguments": ["{model"]}, "INPUT_INVALID", "{model"),
        ({"arguments": ["{model.x}"]}, "INPUT_INVALID", "braces"),
        ({"arguments": ["{model!r}"]}, "INPUT_INVALID", "braces"),
        ({"arguments": ["{}"]}, "INPUT_INVALID", "braces"),
        ({"stream": "xml"}, "INPUT_INVALID", "xml"),
        ({"environment": {"1": "x"}}, "NAME_INVALID", "1"),
        ([], "INPUT_INVALID", "array"),
    ],
)
def test_bad_descriptions_are_refused(document: Any, code: str, word: str) -> None:
    with pytest.raises(errors.AgentinaError) as refused:
        described.parse(document, "ada.yaml")
    assert refused.value.code == code
    assert word in str(refused.value)


def test_registry_offers_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name, text in {
        "codex": f"program: {program}\nenvironment: {{A: b}}\n",
        "ada": f"program: {program}\n",
        "gone": "program: /nowhere\n",
        "gemini": f"program: {program}\nstream: codex\n",
        "Bad": f"program: {program}\n",
        "broken": "program: [",
        "command": f"program: {program}\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    found = registry.load(tmp_path, tmp_path / "copies")
    assert {"command", "codex", "ada"} <= found.keys()
    assert not {"gone", "gemini", "Bad", "broken"} & found.keys()
    assert not found["command"].stream
    made = found["codex"].plan(job("codex", {"prompt": "x"}), place=PLACE)
    assert (made.argv[4], made.environment["A"]) == (str(program), "b")
    (tmp_path / "link").symlink_to(program)
    (tmp_path / "codex.yaml").write_text(f"program: {tmp_path / 'link'}\n")
    shown = registry.programs(registry.load(tmp_path, tmp_path / "copies"))
    assert shown["codex"].startswith(f"{program.resolve()} of 20")
    assert "command" not in shown
    told = [record.getMessage() for record in caplog.records]
    assert {name for name in ("gone", "gemini", "Bad", "broken", "command") if any(name in line for line in told)} == {
        "gone", "gemini", "Bad", "broken", "command",
    }  # fmt: skip


def test_every_format_is_known() -> None:
    (field,) = [field for field in msgspec.structs.fields(described.Description) if field.name == "stream"]
    assert {"text", *formats.FORMATS} == set(typing.get_args(field.type))
    assert set(RUNNERS) == set(formats.FORMATS)


def test_no_directory_no_trouble(tmp_path: Path) -> None:
    assert "command" in registry.load(tmp_path / "none", tmp_path / "none")
    assert not list(tmp_path.iterdir())
