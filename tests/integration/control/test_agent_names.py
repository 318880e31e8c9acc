"""Agents by the names that tables show, on command lines and in shells."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec

from agentina import errors
from tests.fakes import deadlines
from tests.integration.control import simulated
from tests.integration.control.conftest import CommandLine


def agent_of(control: Any, hostname: str, instance: str = "default") -> str:
    agent = simulated.Agent(control.url)
    activation = agent.activation(control.operator.mint())
    message = {**msgspec.to_builtins(activation), "hostname": hostname, "instance": instance}
    return str(agent.call("POST", "/v1/activate", message)["agent_id"])


def test_an_agent_is_named_by_its_host_too(control: Any, command: CommandLine) -> None:
    first, second = agent_of(control, "build-3"), agent_of(control, "build-4")
    for name in (first, "build-3/default", "build-3"):
        code, out, _ = command("agent", "show", name, "--json")
        assert (code, json.loads(out)["id"]) == (0, first)
    assert command("agent", "drain", "build-4", "--reason", "new disk")[0] == 0
    assert control.operator.call("GET", f"/v1/agents/{second}")["state"] == "draining"
    assert command("budget", "set", "--agent", "build-4/default", "--tokens", "5")[0] == 0
    assert second in command("budget", "list", "--json")[1]
    assert command("anomaly", "list", "--agent", "build-3")[0] == 0
    assert command("agent", "remove", "build-3", "--yes")[1] == f"Agent {first} is removed.\n"


def test_what_could_be_several_agents_is_refused_with_their_names(control: Any, command: CommandLine) -> None:
    one, other = agent_of(control, "build-3"), agent_of(control, "build-3", "second")
    code, _, said = command("agent", "show", "build-3")
    assert code == errors.Exit.USAGE
    for part in (one, other, "build-3/second", "code: AGENT_AMBIGUOUS"):
        assert part in said
    assert json.loads(command("agent", "show", "build-3/second", "--json")[1])["id"] == other
    # Containers, and clones of a machine, can have all of it alike.
    agent_of(control, "build-3", "second")
    assert command("agent", "show", "build-3/second")[0] == errors.Exit.USAGE


def test_an_unknown_name_is_refused_with_those_that_are_like_it(control: Any, command: CommandLine) -> None:
    known = agent_of(control, "build-3")
    code, _, said = command("agent", "drain", "biuld-3")
    assert code == errors.Exit.NOT_FOUND
    assert f"build-3/default ({known})" in said
    assert "biuld-3" in said
    assert "build-3" not in command("agent", "drain", "web-1/default")[2]


def completed(line: str, control: Any) -> list[str]:
    """What bash would offer for the last word of ``line``."""
    words = line.split(" ")
    environment = {
        "_AGENTINA_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
        "AGENTINA_CONTROL_PLANE": control.url, "AGENTINA_API_TOKEN": control.token,
    }  # fmt: skip
    # As long as a busy machine needs: a person who waits for a completion is not waited for here.
    code = (
        "import sys; sys.argv[0] = 'agentina'; from agentina.cli import agent_names, main; "
        f"agent_names._COMPLETION_SECONDS = {deadlines.HANG}; main.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False,
        timeout=deadlines.HANG,
    )  # fmt: skip
    assert done.stderr == ""
    return [offer.partition(",")[2] for offer in done.stdout.split()]


def test_shells_complete_agents(control: Any) -> None:
    known = agent_of(control, "build-3")
    agent_of(control, "web-1")
    assert completed("agentina agent drain ", control) == ["build-3/default", "web-1/default"]
    assert completed("agentina agent show bu", control) == ["build-3/default"]
    assert completed(f"agentina agent show {known[:8]}", control) == [known]
    assert completed("agentina budget show --agent we", control) == ["web-1/default"]
    assert completed("agentina anomaly list --agent bu", control) == ["build-3/default"]


def test_without_a_control_plane_nothing_is_completed_and_nothing_said(control: Any) -> None:
    control.url = "http://127.0.0.1:1"
    assert completed("agentina agent show ", control) == []
