"""Organizations on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.protocol import licensing
from tests.integration.control import conftest, simulated
from tests.integration.control.conftest import CommandLine


def test_one_is_made_changed_and_listed(control: Any, command: CommandLine) -> None:
    control.agent()
    code, out, said = command("organization", "set", "acme", "--max-agents", "3", "--channel", "beta")
    assert (code, said) == (0, "Organization acme is new.\n")
    assert "0 of 3" in out
    assert command("organization", "set", "acme", "--plan", "small")[2] == ""
    lines = command("organization", "list")[1].splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["acme", "small", "0/3"], ["default", "community", "1/100"]]
    listed = json.loads(command("organization", "list", "--json")[1])["organizations"]
    assert [one["name"] for one in listed] == ["acme", "default"]


def test_a_name_that_is_mistyped_is_told_where_to_look(control: Any, command: CommandLine) -> None:
    del control
    for words in (("organization", "show", "x"), ("anomaly", "list", "--organization", "x")):
        code, _, said = command(*words)
        assert code == errors.Exit.NOT_FOUND
        assert "organization list" in said


def test_jobs_of_a_name_that_is_mistyped_are_not_none(control: Any) -> None:
    control.operator.submit()
    assert len(control.operator.call("GET", "/v1/jobs?organization=default")["jobs"]) == 1
    with pytest.raises(errors.AgentinaError, match="NOT_FOUND"):
        control.operator.call("GET", "/v1/jobs?organization=defualt")


def test_who_is_away_gets_the_new_license_after_a_restart(tmp_path: Path) -> None:
    with conftest.ControlPlane(tmp_path) as control:
        agent, token = control.agent(), control.token
        control.operator.call("PUT", "/v1/organizations/default", {"max_concurrent_tasks_per_agent": 2})
    with conftest.ControlPlane(tmp_path) as control:
        control.operator = simulated.Operator(control.url, token)
        back = simulated.Agent(control.url, key=agent.key)
        back.activated, back.session = agent.activated, agent.session
        back.authenticate()
        signed = back.heartbeat().directives.license
    assert signed is not None
    license_ = msgspec.json.decode(signed.payload, type=licensing.License)
    assert license_.max_concurrent_tasks_per_agent == 2


def test_a_license_that_is_asked_for_again_after_a_change_has_not_run_out(control: Any) -> None:
    agent, token = simulated.Agent(control.url), control.operator.mint()
    agent.activate(token)
    control.operator.call("PUT", "/v1/organizations/default", {"max_concurrent_tasks_per_agent": 2})
    license_ = msgspec.json.decode(agent.activate(token).license.payload, type=licensing.License)
    assert license_.max_concurrent_tasks_per_agent == 2
    assert license_.expires_ms > control.clock.wall_ms()
