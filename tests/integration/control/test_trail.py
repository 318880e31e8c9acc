"""The audit: who asked for what, what it touched, and what was refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import pytest

from agentina import errors
from agentina.control.api import routes, routing
from agentina.control.services import refusals
from agentina.control.store import audit
from agentina.protocol import budgets
from tests.integration.control import conftest, simulated, test_anomalies, test_api


def records(operator: simulated.Operator) -> list[tuple[str, str, str, Any]]:
    entries = operator.call("GET", "/v1/audit?limit=1000")["entries"]
    known = {"job.submit", "task.end"}
    return [(e["action"], e["actor"], e["subject"], e["detail"]) for e in entries if e["action"] in known]


def test_an_agents_job_leaves_who_asked_for_what_and_what_it_touched(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    agent.open(runners=["claude-code"])
    job = operator.submit(
        runner="claude-code", payload={"prompt": "fix it", "model": "claude-haiku-4-5"},
        workspace={"git": "https://ann:hunter2@git.example.com/team/app.git"},
        scope={"hosts": ["pypi.org"], "paths": ["src"]}, budget={"cost": 1.5},
    )  # fmt: skip
    (task,) = agent.take()
    row = budgets.ModelUsage(model="claude-haiku-4-5", day="2026-11-21", calls=1, input=10, output=5, cost_nano=35_000)
    agent.run(task, commit="0123abc", changed=["src/a.py"], hosts=["pypi.org:443"], models=[row])
    submitted, ended = records(operator)
    assert submitted == (
        "job.submit", "operator:admin", job,
        {
            "name": submitted[3]["name"], "runner": "claude-code", "model": "claude-haiku-4-5",
            "repository": "git.example.com/team/app", "hosts": ["pypi.org"], "paths": ["src"],
            "budget": {"cost": 1.5},
        },
    )  # fmt: skip
    assert ended == (
        "task.end", f"agent:{agent.activated.agent_id}", task,
        {
            "commit": "0123abc", "changed": ["src/a.py"], "hosts": ["pypi.org:443"], "models": ["claude-haiku-4-5"],
            "tokens": 15, "cost_nano": 35_000, "state": "succeeded",
        },
    )  # fmt: skip
    assert operator.call("GET", "/v1/audit/verify")["intact"]


def test_long_lists_are_cut_and_say_so(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    operator.submit(scope={"hosts": [f"h{number}.example.com" for number in range(60)]})
    (task,) = agent.take()
    agent.run(task, changed=[f"{number}.py" for number in range(400)])
    submitted, ended = records(operator)
    assert submitted[3]["hosts"][50:] == ["and 10 more"]
    assert ended[3]["changed"][50:] == ["and 350 more"]


def test_a_plain_command_leaves_no_record(control: Any) -> None:
    operator, agent = control.operator, control.agent()
    operator.submit()
    (task,) = agent.take()
    agent.run(task)
    assert records(operator) == []


# --- every act of an operator --------------------------------------------------------------------------------------

ROUTES: Final = routes.table()
CHANGING: Final = [route for route in ROUTES if route.method != "GET" and route.auth not in {"public", "agent"}]
ACTS: Final = sorted({route.act for route in CHANGING})


def newest(operator: simulated.Operator, query: str = "") -> Any:
    return operator.call("GET", f"/v1/audit?before=9000000000&limit=1{query}")["entries"][0]


class Acting:
    """Does each act once, after what must be there for it."""

    def __init__(self, control: conftest.ControlPlane) -> None:
        self.control, self.operator = control, control.operator

    def __call__(self, act: str) -> None:
        {
            "agent": self._agent, "anomaly": self._anomaly, "budget": self._budget, "job": self._job,
            "operator": self._operator, "organization": self._organization, "rollout": self._rollout,
            "token": self._token,
        }[act.partition(".")[0]](act.partition(".")[2])  # fmt: skip

    def _agent(self, verb: str) -> None:
        path = f"/v1/agents/{self._opened().activated.agent_id}"
        if verb == "remove":
            self.operator.call("DELETE", path)
        else:
            self.operator.call("POST", f"{path}/{verb}", {"version": "1.2.3"} if verb == "pin" else {"reason": "why"})

    def _anomaly(self, verb: str) -> None:
        test_anomalies.say(self._opened(), test_anomalies.found(f"{verb} this"))
        one = test_anomalies.listed(self.operator)[0]
        if verb == "reopen":
            self.operator.call("POST", f"/v1/anomalies/{one['id']}/close")
        self.operator.call("POST", f"/v1/anomalies/{one['id']}/{verb}", {"text": "t"} if verb == "answer" else None)

    def _budget(self, verb: str) -> None:
        path = "/v1/budgets/organization/default"
        if verb != "set":
            self.operator.call("PUT", path, {"tokens": 100})
        method = {"set": "PUT", "raise": "POST", "remove": "DELETE"}[verb]
        body = None if verb == "remove" else {"tokens": 1000}
        self.operator.call(method, path + "/raise" * (verb == "raise"), body)

    def _job(self, verb: str) -> None:
        agent = self._opened() if verb == "checkpoint" else None
        job = self.operator.submit(scope={"hosts": ["pypi.org"]})
        if agent is not None:
            (task,) = agent.take()
            job = task.split(".")[0]
            agent.report(agent.fact(task, "accepted"), agent.fact(task, "running"))
        if verb == "retry":
            self.operator.call("POST", f"/v1/jobs/{job}/cancel")
        if verb != "submit":
            self.operator.call("POST", f"/v1/jobs/{job}/{verb}")

    def _operator(self, verb: str) -> None:
        self.operator.call("POST", "/v1/operators", {"name": verb})
        if verb == "renew":
            self.operator.call("POST", f"/v1/operators/{verb}/renew")
        elif verb == "revoke":
            self.operator.call("DELETE", f"/v1/operators/{verb}")

    def _organization(self, _: str) -> None:
        self.operator.call("PUT", "/v1/organizations/default", {"max_agents": 70})

    def _rollout(self, verb: str) -> None:
        # One that is for other agents than the one before does not overlap it.
        agent = self._opened(role=f"role-{verb}")
        plan = {"version": "1.2.3", "select": [f"role=role-{verb}"]}
        rollout = self.operator.call("POST", "/v1/rollouts", plan)["rollout"]["id"]
        if verb == "resume":
            self.operator.call("POST", f"/v1/rollouts/{rollout}/pause")
        if verb != "start":
            body = {"agent": agent.activated.agent_id} if verb == "skip" else None
            self.operator.call("POST", f"/v1/rollouts/{rollout}/{verb}", body)

    def _token(self, verb: str) -> None:
        token = self.operator.call("POST", "/v1/tokens", {"role": "coder"})["tokens"][0]["id"]
        if verb == "revoke":
            self.operator.call("DELETE", f"/v1/tokens/{token}")

    def _opened(self, **token: Any) -> simulated.Agent:
        agent = self.control.agent(**token)
        agent.open()
        agent.heartbeat()
        return agent


def test_every_route_that_changes_something_has_an_act_and_no_other_has() -> None:
    assert all(route.act for route in CHANGING)
    assert [route.path for route in ROUTES if route.act and route not in CHANGING] == []


def test_every_act_of_an_operator_is_in_the_audit(control: Any, operator: simulated.Operator) -> None:
    perform = Acting(control)
    for act in ACTS:
        before = newest(operator)["number"]
        perform(act)
        record = newest(operator)
        assert record["number"] > before, act
        assert (record["action"], record["actor"]) == (act, "operator:admin")
        assert record["subject"], act
    assert operator.call("GET", "/v1/audit/verify")["intact"]


def attempt(client: simulated.Client, route: routing.Route, name: str = "x") -> str:
    with pytest.raises(errors.AgentinaError) as caught:
        client.call(route.method, re.sub(r"\{[^}]*\}", name, route.path), None if route.method == "DELETE" else {})
    return caught.value.code


def test_who_may_not_do_it_is_in_the_audit(control: Any, operator: simulated.Operator) -> None:
    eve, thief = test_api.add_operator(control, "eve", "viewer"), simulated.Operator(control.url, "aop_" + "0" * 32)
    for route in CHANGING:
        for client, actor, code in ((eve, "operator:eve", "FORBIDDEN"), (thief, "stranger", "AUTH_INVALID")):
            assert attempt(client, route) == code
            record = newest(operator)
            assert (record["action"], record["actor"]) == (route.act, actor)
            assert record["detail"] == {"refused": code, "from": "127.0.0.1"}
            assert record["subject"] == "/".join("x" for _ in route.parameters)


@pytest.mark.parametrize(
    ("act", "name", "code"),
    [
        ("job.cancel", "job_none", "JOB_UNKNOWN"),
        ("agent.remove", "none", "NOT_FOUND"),
        ("token.revoke", "none", "NOT_FOUND"),
    ],
)
def test_what_cannot_be_done_is_in_the_audit(control: Any, act: str, name: str, code: str) -> None:
    (route,) = [route for route in CHANGING if route.act == act]
    assert attempt(control.operator, route, name) == code
    record = newest(control.operator)
    assert (record["action"], record["subject"], record["detail"]["refused"]) == (act, name, code)


def test_a_secret_given_as_a_name_is_not_kept(control: Any, operator: simulated.Operator) -> None:
    secret = operator.mint()
    (route,) = [route for route in CHANGING if route.act == "token.revoke"]
    assert attempt(operator, route, secret) == "NOT_FOUND"
    assert newest(operator)["subject"] == "act_..."


def test_unknown_credentials_are_in_the_audit_and_missing_ones_are_not(control: Any) -> None:
    before = newest(control.operator)["number"]
    simulated.Client(control.url).raw("POST", "/v1/jobs", b"{}").read()
    assert newest(control.operator)["number"] == before
    stranger = simulated.Agent(control.url)
    with pytest.raises(errors.AgentinaError, match="TOKEN_UNKNOWN"):
        stranger.activate("act_" + "0" * 32)
    record = newest(control.operator)
    assert (record["actor"], record["action"], record["detail"]["refused"]) == ("stranger", "access", "TOKEN_UNKNOWN")


def test_strangers_can_neither_fill_the_audit_nor_hide_what_operators_try(control: Any) -> None:
    operator, thief = control.operator, simulated.Operator(control.url, "aop_" + "0" * 32)
    who = next(route for route in ROUTES if route.path == "/v1/whoami")
    for _ in range(refusals.PER_HOUR + 20):
        attempt(thief, who)
    strangers = operator.call("GET", "/v1/audit?actor=stranger&limit=1000")["entries"]
    assert refusals.PER_HOUR <= len(strangers) < refusals.PER_HOUR + 20
    (remove,) = [route for route in CHANGING if route.act == "agent.remove"]
    attempt(operator, remove)
    assert newest(operator)["actor"] == "operator:admin"
    control.clock.boot_offset += 3600
    attempt(thief, who)
    left_out = newest(operator)["detail"]["left_out"]
    assert len(strangers) + left_out == refusals.PER_HOUR + 20


# --- finding records -------------------------------------------------------------------------------------------------


def test_records_are_found_by_who_what_whom_and_when(control: Any, command: Callable[..., Any]) -> None:
    operator = control.operator
    bob = test_api.add_operator(control, "bob", "operator")
    job, other = bob.submit(scope={"hosts": ["pypi.org"]}), operator.submit(scope={"hosts": ["pypi.org"]})
    bob.call("POST", f"/v1/jobs/{job}/cancel", {"reason": "no"})

    def listed(query: str) -> list[tuple[str, str]]:
        entries = operator.call("GET", f"/v1/audit?{query}")["entries"]
        return [(entry["action"], entry["subject"]) for entry in entries]

    of_bob = [("job.submit", job), ("job.cancel", job)]
    assert listed("actor=bob") == listed("actor=operator:bob") == listed(f"subject={job}") == of_bob
    assert listed("actor=bob&before=9000000000") == of_bob[::-1]
    assert listed("action=job") == [of_bob[0], ("job.submit", other), of_bob[1]]
    assert listed("action=job.cancel") == of_bob[1:]
    assert listed(f"since={control.clock.wall_ms() + 60_000}") == listed("actor=ob") == listed("after=99") == []
    code, out, _ = command("audit", "list", "--actor", "bob", "--since", "1h")
    assert (code, [line.split()[3] for line in out.splitlines()[1:]]) == (0, ["job.cancel", "job.submit"])
    code, out, said = command("audit", "list", "--limit", "1", "--action", "job")
    assert (code, len(out.splitlines())) == (0, 2)
    number = out.splitlines()[1].split()[0]
    assert f"--before {number}" in said
    code, out, _ = command("audit", "list", "--limit", "1", "--action", "job", "--before", number)
    assert other in out


def test_a_filter_that_fits_few_looks_at_so_many_at_a_time(
    control: Any, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_LOOKED_AT", 2)
    for _ in range(5):
        control.operator.mint()
    page = control.operator.call("GET", "/v1/audit?action=operator&before=9000000000")
    assert (page["entries"], page["next"]) == ([], 5)
    for query in ("", "&before=9000000000"):
        found, after = [], f"&after=0{query}"
        while after:
            page = control.operator.call("GET", f"/v1/audit?limit=4{after}")
            found += [entry["number"] for entry in page["entries"]]
            name = "before" if query else "after"
            after = f"&{name}={page['next']}" if page["next"] else ""
        assert found == (list(range(6, 0, -1)) if query else list(range(1, 7)))
    _, out, _ = command("audit", "list", "--action", "operator.create")
    assert len(out.splitlines()) == 2
