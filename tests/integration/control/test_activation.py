from __future__ import annotations

import collections
import threading
from typing import Any

import pytest

from agentina import errors
from agentina.protocol import licensing, signing
from tests.integration.control import simulated


def refusal(agent: simulated.Agent, token: str, **changes: Any) -> errors.AgentinaError:
    with pytest.raises(errors.AgentinaError) as caught:
        agent.activate(token, **changes)
    return caught.value


def test_fifty_machines_race_for_one_token_and_exactly_one_wins(control: Any, operator: simulated.Operator) -> None:
    token = operator.mint()
    agents = [simulated.Agent(control.url) for _ in range(50)]
    outcomes: list[Any] = []
    barrier = threading.Barrier(50)

    def race(agent: simulated.Agent) -> None:
        barrier.wait()
        try:
            outcomes.append(agent.activate(token).agent_id)
        except errors.AgentinaError as error:
            outcomes.append((error.code, error.context["host"]))
        agent.close()

    threads = [threading.Thread(target=race, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, str)]
    refused = collections.Counter(outcome for outcome in outcomes if not isinstance(outcome, str))
    (shown,) = operator.call("GET", "/v1/agents")["agents"]
    assert shown["id"] == winner
    assert refused == {("TOKEN_USED", shown["hostname"]): 49}
    (listed,) = operator.call("GET", "/v1/tokens")["tokens"]
    assert (listed["state"], listed["refused"], listed["agent_id"]) == ("used", 49, winner)
    actions = [entry["action"] for entry in operator.call("GET", "/v1/audit?limit=1000")["entries"]]
    assert (actions.count("token.redeemed"), actions.count("token.refused")) == (1, 49)
    assert operator.call("GET", "/v1/audit/verify") == {"intact": True, "first_broken": None}


def test_a_lost_answer_is_recovered_by_the_same_key(control: Any, operator: simulated.Operator) -> None:
    token = operator.mint()
    agent = simulated.Agent(control.url)
    first, second = agent.activate(token), agent.activate(token)
    assert (first.created, second.created) == (True, False)
    assert first.agent_id == second.agent_id
    license_ = signing.verify_struct(second.license, "license", {key.id: key for key in second.keys}, licensing.License)
    assert license_.agent_id == first.agent_id


def test_tokens_that_do_not_hold_are_refused_with_the_reason(control: Any, operator: simulated.Operator) -> None:
    agent = simulated.Agent(control.url)
    assert refusal(agent, "act_" + "0" * 32).code == "TOKEN_UNKNOWN"
    expired = operator.mint(expires_seconds=10)
    control.clock.wall_offset_ms += 11_000
    assert refusal(agent, expired).code == "TOKEN_EXPIRED"
    minted = operator.call("POST", "/v1/tokens", {})["tokens"][0]
    assert operator.call("DELETE", f"/v1/tokens/{minted['id']}")["state"] == "revoked"
    assert refusal(agent, minted["token"]).code == "TOKEN_REVOKED"


def test_the_license_limits_agents_until_one_is_removed(control: Any, operator: simulated.Operator) -> None:
    operator.call("PUT", "/v1/organizations/default", {"max_agents": 1})
    first = control.agent()
    token = operator.mint()
    assert refusal(simulated.Agent(control.url), token).code == "LICENSE_AGENTS_EXHAUSTED"
    operator.call("DELETE", f"/v1/agents/{first.activated.agent_id}")
    second = simulated.Agent(control.url)
    second.activate(token)
    second.activate(token)
    with pytest.raises(errors.AgentinaError, match="AGENT_UNKNOWN"):
        first.poll()
    figures = operator.raw("GET", "/metrics").read().decode()
    assert 'agent_scale_events_total{direction="up",trigger="activation"} 2.0' in figures
    assert 'agent_scale_events_total{direction="down",trigger="removal"} 1.0' in figures


def test_the_token_decides_role_and_labels_over_the_hosts_wish(control: Any, operator: simulated.Operator) -> None:
    token = operator.mint(role="tester", labels={"zone": "a"})
    activated = simulated.Agent(control.url).activate(token, role="coder", labels={"zone": "b", "disk": "ssd"})
    assert (activated.role, activated.labels) == ("tester", {"zone": "a", "disk": "ssd"})


def test_a_key_that_is_not_held_proves_nothing(control: Any, operator: simulated.Operator) -> None:
    token, agent = operator.mint(), simulated.Agent(control.url)
    other = signing.SigningKey.generate()
    forged = licensing.Activate(
        token=token, public_key=agent.key.public.key, proof=other.sign("activation", token.encode()), hostname="h",
        instance="default",
    )  # fmt: skip
    with pytest.raises(errors.AgentinaError, match="SIGNATURE_INVALID"):
        agent.call("POST", "/v1/activate", forged)
    agent.activate(token)


@pytest.mark.parametrize("off_by_ms", [-86_400_000, 86_400_000, -340_000, 40_000])
def test_a_wrong_clock_is_told_the_right_time(control: Any, operator: simulated.Operator, off_by_ms: int) -> None:
    agent = control.agent()
    agent.authenticate(now_ms=control.clock.wall_ms() + off_by_ms)
    with pytest.raises(errors.AgentinaError, match="ASSERTION_EXPIRED") as caught:
        agent.heartbeat()
    agent.authenticate(now_ms=caught.value.context["server_time_ms"])
    agent.heartbeat()


def test_assertions_of_others_are_refused(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    good = agent.authorization
    content = {"agent_id": agent.activated.agent_id, "audience": "another", "now_ms": control.clock.wall_ms()}
    for header in (
        signing.make_assertion(agent.key, **content),
        signing.make_assertion(signing.SigningKey.generate(), **content),
        "Agentina nonsense", "Bearer x", "Agentina " + "A" * 5000, "",
    ):  # fmt: skip
        agent.authorization = header
        with pytest.raises(errors.AgentinaError, match="ASSERTION_INVALID"):
            agent.heartbeat()
    agent.authorization = good
    agent.heartbeat()


def test_a_changed_organization_reaches_its_agents_licenses(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    for _ in range(3):
        agent.heartbeat()
    assert agent.heartbeat().directives.license is None
    operator.call("PUT", "/v1/organizations/default", {"max_concurrent_tasks_per_agent": 3})
    renewed = agent.heartbeat().directives.license
    assert renewed is not None
    keys = {key.id: key for key in agent.activated.keys}
    assert signing.verify_struct(renewed, "license", keys, licensing.License).max_concurrent_tasks_per_agent == 3
