from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.protocol import jobs

MINIMAL: dict[str, Any] = {"name": "x", "payload": {"argv": ["true"]}}


def refused(document: object) -> errors.AgentinaError:
    with pytest.raises(errors.AgentinaError) as caught:
        jobs.parse_job(document)
    return caught.value


def test_minimal_job_gets_safe_defaults() -> None:
    job = jobs.parse_job(MINIMAL)
    assert (job.memory_bytes, job.cpus) == (2 << 30, 1.0)
    assert job.retry.on == ["lost"]
    assert job.limits.timeout == 3600


def test_sizes_and_durations_are_read_as_people_write_them() -> None:
    job = jobs.parse_job(MINIMAL | {"resources": {"memory": "1.5GiB"}, "limits": {"timeout": "1h30m", "output": "2K"}})
    assert (job.memory_bytes, job.limits.timeout, job.limits.output) == (3 << 29, 5400.0, 2048)


def test_misspelt_key_is_named_with_its_path_and_a_near_miss() -> None:
    error = refused(MINIMAL | {"resources": {"memori": 1}})
    assert error.code == "INPUT_UNKNOWN_KEY"
    assert error.message == "job.resources: unknown key 'memori' (did you mean 'memory'?)."
    assert "memory" in error.remedy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timeout": 60}, "job: unknown key 'timeout' (did you mean 'limits.timeout'?)."),
        ({"Memory": "1GiB"}, "job: unknown key 'Memory' (did you mean 'resources.memory'?)."),
        ({"resources": {"timeout": 60}}, "job.resources: unknown key 'timeout' (did you mean 'limits.timeout'?)."),
        ({"Name": "x"}, "job: unknown key 'Name' (did you mean 'name'?)."),
        ({"verify": {"Argv": ["x"]}}, "job.verify: unknown key 'Argv' (did you mean 'argv'?)."),
        ({"on_sunday": 1}, "job: unknown key 'on_sunday'."),
    ],
)
def test_key_that_belongs_elsewhere_is_told_where(change: dict[str, object], said: str) -> None:
    assert refused(MINIMAL | change).message == said


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"payload": {}}, "job.payload"),
        ({"payload": {"argv": ["a"], "script": "b"}}, "job.payload"),
        ({"payload": {"argv": ["a\0b"]}}, "job.payload"),
        ({"limits": {"timeout": "soon"}}, "job.limits.timeout"),
        ({"limits": {"timeout": "-5"}}, "job.limits.timeout"),
        ({"limits": {"timeout": 0}}, "job.limits.timeout"),
        ({"priority": 101}, "job.priority"),
        ({"workspace": {"git": "ext::sh -c evil"}}, "job.workspace.git"),
        ({"workspace": {"git": "--upload-pack=evil"}}, "job.workspace.git"),
        ({"workspace": {"git": "https://example.org/a", "ref": "-x"}}, "job.workspace.ref"),
        ({"resources": {"memory": 10}}, "job.resources.memory"),
        ({"resources": {"memory": "1048575"}}, "job.resources.memory"),
        ({"artifacts": ["ok", "../secret"]}, "job.artifacts[1]"),
        ({"artifacts": ["/etc/passwd"]}, "job.artifacts[0]"),
        ({"scope": {"paths": ["src", "../x"]}}, "job.scope.paths[1]"),
        ({"environment": {"A": "x\0y"}}, "job.environment.A"),
        ({"retry": {"on": ["sometimes"]}}, "job.retry.on[0]"),
    ],
)
def test_bad_values_are_refused_with_their_path(change: dict[str, Any], where: str) -> None:
    error = refused(MINIMAL | change)
    assert error.code == "INPUT_INVALID"
    assert error.context["where"] == where


@pytest.mark.parametrize("change", [{"role": "Bad Role"}, {"labels": {"a b": "c"}}, {"environment": {"1A": "x"}}])
def test_bad_names_are_refused(change: dict[str, Any]) -> None:
    assert refused(MINIMAL | change).code == "NAME_INVALID"


def test_environment_values_are_hidden_and_secrets_masked() -> None:
    environment = {"API_KEY": "abcdefgh", "MODE": "production", "OTHER": {"secret": "zzzzzzzzz"}, "SHORT_TOKEN": "abc"}
    job = jobs.parse_job(MINIMAL | {"environment": environment})
    assert jobs.masked_values(job) == ["zzzzzzzzz", "abcdefgh"]
    shown = msgspec.json.encode(jobs.without_values(job))
    assert not any(value in shown for value in (b"abcdefgh", b"production", b"zzzzzzzzz", b"abc"))
    assert jobs.environment_values(job)["OTHER"] == "zzzzzzzzz"


AGENT: dict[str, Any] = {"name": "x", "runner": "claude-code", "payload": {"prompt": "fix it"}}


@pytest.mark.parametrize(
    ("runner", "payload", "where", "word"),
    [
        ("command", {"prompt": "x"}, "job.payload.prompt", "it takes argv, script"),
        ("claude-code", {"script": "x"}, "job.payload.script", "prompt"),
        ("claude-code", {}, "job.payload", "exactly one of prompt and prompt_file"),
        ("codex", {"prompt": "x", "prompt_file": "y"}, "job.payload", "exactly one"),
        ("codex", {"prompt": "x", "max_turns": 3}, "job.payload.max_turns", "'codex' has no such key"),
        ("opencode", {"prompt": "x", "allowed_tools": []}, "job.payload.allowed_tools", "no such key"),
        ("gemini", {"prompt": "x", "max_turns": 0}, "job.payload.max_turns", ">= 1"),
        ("gemini", {"prompt_file": "../x"}, "job.payload.prompt_file", "leaves the workspace"),
        ("gemini", {"prompt_file": "/etc/passwd"}, "job.payload.prompt_file", "leaves the workspace"),
        ("codex", {"prompt": "x", "model": "-m"}, "job.payload.model", "regex"),
        ("codex", {"prompt": "x", "resume": "--last"}, "job.payload.resume", "regex"),
        ("claude-code", {"prompt": "x", "allowed_tools": ["a,b"]}, "job.payload.allowed_tools[0]", "regex"),
        ("codex", {"prompt": "x", "mcp_servers": {"a": {}}}, "job.payload.mcp_servers.a", "command and url"),
        (
            "codex", {"prompt": "x", "mcp_servers": {"a": {"url": "http://h", "environment": {"A": "b"}}}},
            "job.payload.mcp_servers.a", "belongs to a command",
        ),
        (
            "codex", {"prompt": "x", "mcp_servers": {"a": {"url": "http://h", "headers": {"A": "b\r\nC: d"}}}},
            "job.payload.mcp_servers.a.headers", "no header",
        ),
        ("ada", {"argv": ["x"]}, "job.payload.argv", "prompt"),
    ],
)  # fmt: skip
def test_payload_has_the_keys_of_its_runner(runner: str, payload: dict[str, Any], where: str, word: str) -> None:
    error = refused({"name": "x", "runner": runner, "payload": payload})
    assert error.code == "INPUT_INVALID"
    assert error.context["where"] == where
    assert word in str(error)


def test_misspelt_key_of_a_payload_has_a_near_miss() -> None:
    error = refused(AGENT | {"payload": {"prompt": "x", "max_turn": 3}})
    assert "(did you mean 'max_turns'?)" in error.message


def test_runners_that_only_hosts_know_are_taken() -> None:
    assert jobs.parse_job(AGENT | {"runner": "ada-2"}).runner == "ada-2"
    assert refused(AGENT | {"runner": "Ada 2"}).context["where"] == "job.runner"


def test_values_of_tool_servers_are_hidden_and_masked() -> None:
    servers = {
        "a": {"command": ["x"], "environment": {"API_KEY": "abcdefgh", "MODE": "production"}},
        "b": {"url": "https://h", "headers": {"Authorization": {"secret": "Bearer zzzzzzzzz"}}},
    }
    job = jobs.parse_job(AGENT | {"payload": {"prompt": "x", "mcp_servers": servers}})
    assert jobs.masked_values(job) == ["Bearer zzzzzzzzz", "abcdefgh"]
    shown = msgspec.json.encode(jobs.without_values(job))
    assert not any(value in shown for value in (b"abcdefgh", b"production", b"zzzzzzzzz"))
    assert b"fix" not in shown


def test_schema_knows_the_keys_of_each_runner() -> None:
    rules = jobs.schema()["$defs"]["JobSpec"]["allOf"]
    keys = {rule["if"]["properties"]["runner"]["pattern"]: rule["then"]["properties"]["payload"] for rule in rules}
    assert keys["^command(@|$)"] == {"propertyNames": {"enum": ["argv", "script"]}}
    assert [rule["if"]["properties"]["runner"]["pattern"] for rule in rules if "required" not in rule["if"]] == [
        "^command(@|$)"
    ]
    assert "max_turns" not in keys["^codex(@|$)"]["propertyNames"]["enum"]


def test_job_may_ask_for_a_version_of_its_runner() -> None:
    asked = jobs.parse_job({"name": "x", "runner": "codex@0.163.0-rc.1", "payload": {"prompt": "x"}})
    assert (asked.runner, asked.runner_name) == ("codex@0.163.0-rc.1", "codex")


@pytest.mark.parametrize("runner", ["codex@", "@1", "codex@1@2", "codex@../x", "codex@.x", "command@1", "codex@1 2"])
def test_what_is_no_version_of_a_runner(runner: str) -> None:
    payload = {"argv": ["x"]} if runner.startswith("command") else {"prompt": "x"}
    with pytest.raises(errors.AgentinaError, match="INPUT_INVALID"):
        jobs.parse_job({"name": "x", "runner": runner, "payload": payload})


def test_version_of_a_runner_takes_the_keys_of_the_runner() -> None:
    with pytest.raises(errors.AgentinaError, match="INPUT_INVALID"):
        jobs.parse_job({"name": "x", "runner": "codex@1", "payload": {"prompt": "x", "max_turns": 3}})


def test_schema_accepts_text_where_the_parser_does() -> None:
    properties = jobs.schema()["$defs"]["Limits"]["properties"]
    assert {"type": "string"} in properties["timeout"]["anyOf"]


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
documents = st.fixed_dictionaries(
    {
        "name": st.text("abc -", min_size=1, max_size=20),
        "payload": st.fixed_dictionaries({"argv": st.lists(texts, min_size=1)}),
    },
    optional={
        "priority": st.integers(0, 100),
        "limits": st.fixed_dictionaries(
            {}, optional={"timeout": st.floats(1, 1000), "output": st.integers(0, 1 << 40)}
        ),
        "environment": st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True), texts),
        "needs": st.lists(texts, max_size=3),
    },
)


@given(documents)
def test_encoded_job_is_read_back_the_same(document: dict[str, Any]) -> None:
    job = jobs.parse_job(document)
    assert jobs.parse_job(msgspec.json.decode(msgspec.json.encode(job))) == job


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "payload", "limits", "argv", "x"]), inner)
    ),
    max_leaves=20,
)


@given(junk)
def test_any_document_is_a_job_or_a_catalogue_error(document: object) -> None:
    outcome: errors.Exit | jobs.JobSpec
    try:
        outcome = jobs.parse_job(document)
    except errors.AgentinaError as error:
        outcome = error.entry.exit
    assert outcome is errors.Exit.USAGE or isinstance(outcome, jobs.JobSpec)
