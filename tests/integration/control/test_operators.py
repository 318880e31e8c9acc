"""Who may use the API: operators let in, given other tokens, and revoked; and the way back where nobody has a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.cli import main
from agentina.control.store import registry
from tests.integration.control import conftest, simulated, test_api


def refused(client: simulated.Client, *request: Any) -> str:
    with pytest.raises(errors.AgentinaError) as caught:
        client.call(*request)
    return caught.value.code


def test_operator_lets_another_in_who_may_what_the_role_allows(control: Any, operator: simulated.Operator) -> None:
    alice = test_api.add_operator(control, "alice", "operator")
    assert alice.call("GET", "/v1/whoami")["operator"] == "alice"
    assert refused(alice, "POST", "/v1/operators", {"name": "bob"}) == "FORBIDDEN"
    assert refused(alice, "GET", "/v1/operators") == "FORBIDDEN"
    listed = operator.call("GET", "/v1/operators")["operators"]
    assert [(one["name"], one["role"], one["state"]) for one in listed] == [
        ("admin", "admin", "active"), ("alice", "operator", "active"),
    ]  # fmt: skip
    assert all("token" not in key for one in listed for key in one)


@pytest.mark.parametrize(
    ("name", "code"), [("admin", "STATE_CONFLICT"), ("Al ice", "NAME_INVALID"), ("a" * 33, "NAME_INVALID")]
)
def test_names_are_given_once_and_are_plain(operator: simulated.Operator, name: str, code: str) -> None:
    assert refused(operator, "POST", "/v1/operators", {"name": name}) == code


def test_there_are_not_endlessly_many(operator: simulated.Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_OPERATORS", 1)
    assert refused(operator, "POST", "/v1/operators", {"name": "bob"}) == "INPUT_INVALID"


def test_revoked_token_holds_no_longer_until_it_is_renewed(control: Any, operator: simulated.Operator) -> None:
    former = test_api.add_operator(control, "alice", "viewer")
    for _ in range(2):
        operator.call("DELETE", "/v1/operators/alice")
    assert refused(former, "GET", "/v1/whoami") == "AUTH_INVALID"
    renewed = operator.call("POST", "/v1/operators/alice/renew")
    assert renewed["role"] == "viewer"
    assert simulated.Operator(control.url, renewed["token"]).call("GET", "/v1/whoami")["operator"] == "alice"
    assert refused(former, "GET", "/v1/whoami") == "AUTH_INVALID"


def test_last_administrator_cannot_be_revoked(control: Any, operator: simulated.Operator) -> None:
    assert refused(operator, "DELETE", "/v1/operators/admin") == "STATE_CONFLICT"
    second = test_api.add_operator(control, "second", "admin")
    second.call("DELETE", "/v1/operators/admin")
    assert refused(second, "DELETE", "/v1/operators/second") == "STATE_CONFLICT"


@pytest.mark.parametrize("request_", [("DELETE", "/v1/operators/x"), ("POST", "/v1/operators/x/renew")])
def test_nobody_of_that_name(operator: simulated.Operator, request_: tuple[str, str]) -> None:
    assert refused(operator, *request_) == "NOT_FOUND"


def test_command_line(command: conftest.CommandLine, control: Any) -> None:
    code, token, said = command("operator", "create", "alice", "--role", "viewer")
    assert code == 0
    assert "alice is viewer" in said
    alice = simulated.Operator(control.url, token.strip())
    assert alice.call("GET", "/v1/whoami")["role"] == "viewer"
    _, renewed, _ = command("operator", "renew", "alice", "--json")
    assert refused(alice, "GET", "/v1/whoami") == "AUTH_INVALID"
    assert simulated.Operator(control.url, json.loads(renewed)["token"]).call("GET", "/v1/whoami")["role"] == "viewer"
    assert command("operator", "revoke", "alice") == (0, "Operator alice is revoked.\n", "")
    _, listed, _ = command("operator", "list")
    assert [line.split()[:3] for line in listed.splitlines()[1:]] == [
        ["admin", "admin", "active"], ["alice", "viewer", "revoked"],
    ]  # fmt: skip
    code, _, said = command("operator", "create", "Al ice")
    assert (code, "NAME_INVALID" in said) == (2, True)


def recover(data: Path, *arguments: str) -> int:
    return main.run(["control-plane", "recover", "--data", str(data), *arguments])


def test_lost_token_is_replaced_where_nobody_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with conftest.ControlPlane(tmp_path / "data") as control:
        former = control.token
        assert recover(tmp_path / "data") != 0
        assert "STATE_CONFLICT" in capsys.readouterr().err
    file = tmp_path / "token"
    assert recover(tmp_path / "data", "--token-file", str(file)) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out == ""
    with conftest.ControlPlane(tmp_path / "data") as control:
        admin = simulated.Operator(control.url, file.read_text().strip())
        assert admin.call("GET", "/v1/whoami")["operator"] == "admin"
        newest = admin.call("GET", "/v1/audit?before=9000&limit=1&action=operator.renew")["entries"][0]
        assert (newest["actor"], newest["subject"]) == ("control-plane", "admin")
        assert refused(simulated.Operator(control.url, former), "GET", "/v1/whoami") == "AUTH_INVALID"


@pytest.mark.parametrize("name", ["admin", "nobody"])
def test_there_is_nothing_to_recover(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "nobody":
        with conftest.ControlPlane(tmp_path):
            pass
    before = sorted(tmp_path.iterdir())
    assert recover(tmp_path, name) != 0
    assert "NOT_FOUND" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
