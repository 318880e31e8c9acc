"""Anomalies: reported by agents, added up over the fleet, and resolved by operators."""

from __future__ import annotations

import concurrent.futures
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.cli import main
from agentina.control.services import anomalies as service
from agentina.control.store import anomalies as store
from agentina.protocol import wire
from agentina.protocol.states import State
from tests.fakes import deadlines
from tests.integration.control import simulated, test_api


def found(summary: str = "may not reach example.com:443", **changes: Any) -> wire.Anomaly:
    fields = {"id": summary[:60].replace(" ", "-"), "kind": "egress", "code": "EGRESS_REFUSED", "summary": summary}
    return wire.Anomaly(**{**fields, **changes})


def say(agent: simulated.Agent, anomaly: wire.Anomaly, *, task: str = "") -> None:
    agent.report(agent.fact(task, "anomaly", anomaly=anomaly))


def listed(operator: simulated.Operator, query: str = "") -> Any:
    return operator.call("GET", f"/v1/anomalies{query}")["anomalies"]


def test_the_same_is_added_up_over_the_fleet(control: Any, operator: simulated.Operator) -> None:
    first, second = control.agent(), control.agent()
    operator.submit()
    (task,) = first.take()
    say(first, found(evidence={"url": "https://me:hunter22@example.com/"}, count=3), task=task)
    say(first, found(id="again"), task=task)
    say(second, found("MAY not reach  example.com:8443", id="other"))
    (one,) = listed(operator)
    assert (one["kind"], one["code"], one["state"]) == ("egress", "EGRESS_REFUSED", "open")
    assert (one["count"], one["agents"]) == (5, 2)
    assert one["remedy"]
    assert one["first_ms"] <= one["last_ms"]
    shown = operator.call("GET", f"/v1/anomalies/{one['id']}")
    assert shown["anomaly"] == one
    assert [report["task_id"] for report in shown["reports"]] == ["", task, task]
    assert shown["reports"][2]["count"] == 3
    assert "hunter22" not in str(shown)
    job = operator.show(task.split(".")[0])
    assert [f"egress {one['id']}: may not reach example.com:443 (3 times)"] == [
        event["text"] for event in job["events"] if "3 times" in event["text"]
    ]
    for query, count in (
        ("?kind=egress", 1), ("?kind=host", 0), ("?code=EGRESS_REFUSED", 1), ("?organization=default", 1),
        (f"?agent={first.activated.agent_id}", 1), (f"?job={task.split('.')[0]}", 1),
        ("?state=open", 1), ("?state=closed", 0), ("?state=unresolved", 1),
    ):  # fmt: skip
        assert len(listed(operator, query)) == count, query
    # An empty list would look as if nothing were wrong there.
    for query, said in (
        ("organization=x", "There is no organization"), ("job=job_none", "There is no job"), ("agent=x", "no agent"),
        ("code=egres_refused", r"no code of anomalies \(did you mean 'EGRESS_REFUSED'\?\)"), ("code=x", "no code"),
        ("kind=egres", r"no kind of anomalies \(did you mean 'egress'\?\)"),
    ):  # fmt: skip
        with pytest.raises(errors.AgentinaError, match=said):
            listed(operator, f"?{query}")
    agent = control.agent()
    newer = wire.Anomaly(id="n1", kind="weather", code="RAIN", summary="it rains")
    agent.report(agent.fact("", "anomaly", anomaly=newer))
    assert len(listed(operator, "?kind=weather&code=RAIN")) == 1


def test_a_report_is_applied_once_by_its_id(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    message = wire.Reports(session=agent.session, stream=agent.stream, reports=[
        agent.fact("", "anomaly", anomaly=found(id="one"))
    ])  # fmt: skip
    for _ in range(2):
        agent.call("POST", "/v1/agent/reports", message)
    # A new outbox says it again under another number.
    agent.stream = "another"
    agent.numbers = iter(range(1, 9))
    say(agent, found(id="one"))
    assert [one["count"] for one in listed(operator)] == [1]
    say(agent, found(id="two"))
    assert [one["count"] for one in listed(operator)] == [2]


def test_an_anomaly_of_another_agents_task_is_the_hosts(control: Any, operator: simulated.Operator) -> None:
    owner, other = control.agent(), control.agent()
    operator.submit()
    (task,) = owner.take()
    say(other, found(), task=task)
    say(other, found("other thing", id="b"), task="../../etc")
    found_here = listed(operator)
    assert len(found_here) == 2
    for one in found_here:
        assert operator.call("GET", f"/v1/anomalies/{one['id']}")["reports"][0]["task_id"] == ""


def test_operators_resolve_it_and_what_happens_again_is_open_again(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    say(agent, found())
    (one,) = listed(operator)
    path = f"/v1/anomalies/{one['id']}"

    def act(verb: str, body: Any = None) -> Any:
        return operator.call("POST", f"{path}/{verb}", body)["anomaly"]

    assert act("acknowledge", {"reason": "mine"})["state"] == "acknowledged"
    say(agent, found(id="2"))
    assert listed(operator)[0]["state"] == "acknowledged"
    answered = act("answer", {"text": "Use the mirror."})
    assert (answered["state"], answered["answer"], answered["answered_by"]) == (
        "answered", "Use the mirror.", "operator:admin",
    )  # fmt: skip
    assert act("close", {"reason": "fixed"})["reason"] == "fixed"
    with pytest.raises(errors.AgentinaError, match="STATE_CONFLICT"):
        act("close")
    assert listed(operator, "?state=unresolved") == []
    say(agent, found(id="3"))
    (again,) = listed(operator, "?state=unresolved")
    assert (again["state"], again["reopened"], again["count"], again["changed_by"]) == ("open", 1, 3, "control-plane")
    act("close")
    assert act("reopen")["state"] == "open"
    entries = operator.call("GET", "/v1/audit")["entries"]
    acts = [(entry["action"], entry["detail"].get("refused", "")) for entry in entries]
    assert [one for one in acts if one[0].startswith("anomaly.")] == [
        ("anomaly.acknowledge", ""), ("anomaly.answer", ""), ("anomaly.close", ""), ("anomaly.close", "STATE_CONFLICT"),
        ("anomaly.close", ""), ("anomaly.reopen", ""),
    ]  # fmt: skip
    with pytest.raises(errors.AgentinaError, match="NOT_FOUND"):
        operator.call("POST", "/v1/anomalies/ano_none/close")
    with pytest.raises(errors.AgentinaError, match="INPUT_INVALID"):
        act("answer", {"text": ""})


def test_pages_have_each_once(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    for letter in "abcdefg":
        say(agent, found(f"different {letter}"))
    seen, after = [], ""
    while True:
        page = operator.call("GET", f"/v1/anomalies?limit=3{after}")
        seen += [one["summary"][-1] for one in page["anomalies"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == list("gfedcba")
    for query in ("?after=nonsense", "?state=odd", "?limit=0"):
        with pytest.raises(errors.AgentinaError, match="INPUT_INVALID"):
            operator.call("GET", f"/v1/anomalies{query}")


def test_whoever_waits_hears_of_what_changes(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    say(agent, found("first"))
    page = operator.call("GET", "/v1/anomalies")
    waiting = simulated.Operator(control.url, control.token)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(waiting.call, "GET", f"/v1/anomalies?since={page['revision']}&wait=30")
        say(agent, found("second"))
        news = held.result(deadlines.HANG)
    assert [one["summary"] for one in news["anomalies"]] == ["second"]
    assert news["revision"] > page["revision"]


def test_what_is_kept_is_bounded(control: Any, operator: simulated.Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_UNRESOLVED", 3)
    agent = control.agent()
    for number in range(store.MAX_REPORTS + 5):
        say(agent, found(id=f"r{number}"))
    (one,) = listed(operator)
    shown = operator.call("GET", f"/v1/anomalies/{one['id']}")
    assert (one["count"], len(shown["reports"])) == (store.MAX_REPORTS + 5, store.MAX_REPORTS)
    for letter in "abcdef":
        say(agent, found(f"different {letter}", code=f"ODD_{letter.upper()}"))
    assert len(listed(operator)) == 4
    (many,) = [one for one in listed(operator) if one["summary"].startswith("many")]
    assert (many["count"], many["code"]) == (4, "ANOMALIES_LEFT_OUT")
    evidence = operator.call("GET", f"/v1/anomalies/{many['id']}")["reports"][0]["evidence"]
    assert evidence["summary"] == "different f"


def test_what_was_closed_is_forgotten_in_the_end(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    for letter in "ab":
        say(agent, found(f"different {letter}"))
    closed, _ = listed(operator)
    operator.call("POST", f"/v1/anomalies/{closed['id']}/close")

    def remove() -> None:
        control.run(service.Removal(control.plane).remove_if_due)

    remove()
    assert len(listed(operator)) == 2
    control.clock.wall_offset_ms += service.KEEP_SECONDS * 1000 + 1000
    remove()
    assert [one["state"] for one in listed(operator)] == ["open"]


def test_figures_say_how_many_nobody_has_closed(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    say(agent, found())
    say(agent, found("odd", kind="from-the-future", code="FROM_THE_FUTURE"))
    text = operator.call("GET", "/metrics").decode()
    assert 'anomalies_unresolved{kind="egress",state="open"} 1.0' in text
    assert 'anomalies_unresolved{kind="other",state="open"} 1.0' in text
    assert 'anomalies_reported_total{code="EGRESS_REFUSED",kind="egress"} 1.0' in text
    assert 'anomalies_reported_total{code="other",kind="other"} 1.0' in text


def test_viewers_look_and_only_operators_act(control: Any) -> None:
    say(control.agent(), found())
    viewer = test_api.add_operator(control, "vera", "viewer")
    (one,) = listed(viewer)
    with pytest.raises(errors.AgentinaError, match="FORBIDDEN"):
        viewer.call("POST", f"/v1/anomalies/{one['id']}/close")


def beat(agent: simulated.Agent, task: str, answered: int = 0) -> wire.HeartbeatAnswer:
    held = wire.Held(task_id=task, state=State.RUNNING, answered=answered)
    message = wire.Heartbeat(session=agent.session, tasks=[held])
    return msgspec.convert(agent.call("POST", "/v1/agent/heartbeat", message), wire.HeartbeatAnswer)


def answer(operator: simulated.Operator, text: str) -> None:
    (one,) = listed(operator)
    operator.call("POST", f"/v1/anomalies/{one['id']}/answer", {"text": text})


def test_an_answer_reaches_every_task_that_asked_until_its_host_has_it(
    control: Any, operator: simulated.Operator
) -> None:
    first, second, idle = control.agent(), control.agent(), control.agent()
    held = {}
    for agent in (first, second):
        operator.submit()
        (held[agent],) = agent.take()
        say(agent, found("which branch?", id="question:1", kind="question"), task=held[agent])
    assert beat(first, held[first]).answers == []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        poll = pool.submit(first.poll, slots=0, wait=30)
        answer(operator, "main")
        newest = poll.result(deadlines.HANG).directives.answers
    for agent in (first, second):
        (told,) = beat(agent, held[agent]).answers
        assert (told.text, told.report, told.task_id) == ("main", "question:1", held[agent])
        assert told.number == newest
        assert beat(agent, held[agent], answered=told.number).answers == []
    answer(operator, "no, next")
    (told,) = beat(first, held[first], answered=newest).answers
    assert (told.text, told.number > newest) == ("no, next", True)
    # Whoever asks the same now is answered at once, also by a report of a task that has heard other answers.
    say(first, found("Which branch?", id="question:2", kind="question"), task=held[first])
    (again,) = beat(first, held[first], answered=told.number).answers
    assert (again.text, again.report) == ("no, next", "question:2")
    assert idle.poll(slots=0).directives.answers == 0


def test_answers_outlive_the_control_plane_and_end_with_the_task(tmp_path: Path) -> None:
    with simulated.process(tmp_path / "data") as serving:
        operator = simulated.Operator(serving.url, serving.token)
        agent = simulated.new_agent(serving.url, operator)
        operator.submit()
        (task,) = agent.take()
        agent.report(agent.fact(task, "accepted"), agent.fact(task, "running"))
        say(agent, found("which branch?", id="question:1", kind="question"), task=task)
        answer(operator, "main")
        serving.keep_address()
        serving.kill()
        serving.start()
        agent.close()
        agent.open((task, State.RUNNING))
        (told,) = beat(agent, task).answers
        assert (told.text, told.report) == ("main", "question:1")
        agent.report(agent.finished(task))
        assert beat(agent, task, answered=told.number).answers == []
        # Too late to be answered: nobody is there.
        say(agent, found("which branch?", id="question:2", kind="question"), task=task)
        assert beat(agent, task).answers == []


def test_the_command_line_shows_and_resolves_it(
    control: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = control.agent()
    say(agent, found(evidence={"host": "example.com\x1b[2J"}, release="1.2.3"))
    monkeypatch.setenv("AGENTINA_CONTROL_PLANE", control.url)
    monkeypatch.setenv("AGENTINA_API_TOKEN", control.token)

    def run(*words: str) -> str:
        assert main.run(["anomaly", *words]) == 0
        return capsys.readouterr().out

    name = json.loads(run("list", "--json"))["anomalies"][0]["id"]
    line = run("list", "--kind", "egress").splitlines()[1].split()
    assert line[:6] == [name, "open", "egress", "EGRESS_REFUSED", "1", "1"]
    shown = run("show", name)
    for text in ("may not reach example.com:443", "scope.hosts", "1 time on 1 agent", "1.2.3", "example.com"):
        assert text in shown
    assert "\x1b" not in shown
    assert run("answer", name, "Ask the owner.") == f"{name} is answered.\n"
    assert "Ask the owner. (operator:admin" in run("show", name)
    assert json.loads(run("close", name, "--reason", "allowed now", "--json"))["anomaly"]["reason"] == "allowed now"
    assert name not in run("list")
    assert name in run("list", "--state", "all")
    assert main.run(["anomaly", "show", "ano_none"]) == errors.Exit.NOT_FOUND
