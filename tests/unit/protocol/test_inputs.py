from __future__ import annotations

import msgspec
import pytest

from agentina import errors
from agentina.protocol import api, inputs, jobs


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "INPUT_UNREADABLE"),
        (b"\xff\xfe", "INPUT_UNREADABLE"),
        (b'{"labels":' * 10_000, "INPUT_INVALID"),
        (b'{"count": 0}', "INPUT_INVALID"),
        (b'{"countt": 1}', "INPUT_UNKNOWN_KEY"),
        (b" " * 300_000, "INPUT_TOO_LARGE"),
    ],
)
def test_bad_bodies_get_a_code(body: bytes, code: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        inputs.decode(body, api.TokenCreate, "body", limit=200_000)
    assert caught.value.code == code


def test_good_body() -> None:
    assert inputs.decode(b'{"count": 3}', api.TokenCreate, "body", limit=100).count == 3


def test_half_a_surrogate_pair_is_the_senders_fault() -> None:
    with pytest.raises(errors.AgentinaError, match="surrogate"):
        inputs.convert({"\ud800": 1}, api.TokenCreate, "body")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"environment": {"A": "1", "PORT": 80}}, "environment.PORT: expected `str | object`, got `int` (put it in qu"),
        ({"environment": {"A": {"secrt": "x"}}}, "environment.A: unknown key 'secrt' (did you mean 'secret'?)."),
        ({"environment": {"A": {"secret": None}}}, "environment.A.secret: expected `str`, got `null`."),
        ({"environment": {7: "x"}}, "environment: a key in it: expected `str`, got `int` (put it in quotes)."),
        (
            {"payload": {"mcp_servers": {"a": {}, "b": {"headers": {"c": "d", "e": False}}}}},
            "payload.mcp_servers.b.headers.e: expected `str | object`, got `bool` (put it in quotes).",
        ),
        (
            {"resources": {"profile": "lightwieght"}},
            "resources.profile: invalid enum value 'lightwieght' (did you mean 'lightweight'?); expected one of lightw",
        ),
        ({"retry": {"on": ["lost", "failure"]}}, "retry.on[1]: invalid enum value 'failure' (did you mean 'failed'?);"),
    ],
)
def test_place_and_choice_are_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        inputs.convert({"name": "x", "payload": {}, **given}, jobs.JobSpec, "job")
    assert caught.value.message.startswith(f"job.{said}")


def test_many_keys_do_not_cost_as_many_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    validations = []

    def counted(document: object, kind: object) -> object:
        validations.append(document)
        return convert(document, kind)

    convert = msgspec.convert
    monkeypatch.setattr(msgspec, "convert", counted)
    environment = {f"V{number}": "x" for number in range(5000)} | {"LAST": 1}
    with pytest.raises(errors.AgentinaError, match=r"environment\.LAST"):
        inputs.convert({"name": "x", "payload": {}, "environment": environment}, jobs.JobSpec, "job")
    assert len(validations) < 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nhosts: [\n", "policy.yaml, line 3, column 1 cannot be read: expected the node content, but found '<s"),
        (b"a:\n\tb: 1\n", "policy.yaml, line 2, column 1 cannot be read: found character '\\t' that cannot start"),
        (b"a: 2026-13-45\n", "policy.yaml cannot be read: month must be in 1..12."),
        (b"\xff", "policy.yaml cannot be read: "),
        (b"[" * 50_000, "policy.yaml cannot be read: "),
    ],
)
def test_faults_of_yaml_name_line_and_column(content: bytes, said: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        inputs.decode_yaml(content, "policy.yaml")
    assert caught.value.entry is errors.INPUT_UNREADABLE
    assert caught.value.message.startswith(said)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"runners: [command]\nrunners: []\n", "line 2, column 1 cannot be read: the key 'runners' is there twice"),
        (b"a: [{b: 1, c: 2,\n     b: 3}]\n", "line 2, column 6 cannot be read: the key 'b' is there twice"),
    ],
)
def test_settings_with_a_key_twice_are_refused(content: bytes, place: str) -> None:
    """Which of them counts is nothing that the owner of a host should have to know."""
    with pytest.raises(errors.AgentinaError) as caught:
        inputs.decode_yaml(content, "policy.yaml")
    assert caught.value.code == "INPUT_UNREADABLE"
    assert place in caught.value.message


def test_settings_may_name_one_part_in_several_places() -> None:
    content = b"a: &part {x: 1}\nb: *part\nc: {<<: *part, x: 2}\n"
    assert inputs.decode_yaml(content, "x") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 2}}
    assert inputs.decode_yaml(b"", "x") is None
