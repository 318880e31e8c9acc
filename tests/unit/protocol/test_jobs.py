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
        ({"artifacts": ["ok", "../secret"]}, "job.artifacts[1]"),
        ({"artifacts": ["/etc/passwd"]}, "job.artifacts[0]"),
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
