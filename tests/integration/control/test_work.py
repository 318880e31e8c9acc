from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
import time
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.control import fleet
from agentina.control.services import administration, sessions
from agentina.control.services import jobs as job_service
from agentina.control.store import jobs, migrate
from agentina.protocol import wire
from agentina.protocol.states import Reason, State
from tests.fakes import deadlines
from tests.integration.control import conftest, simulated


def held_poll(agent: simulated.Agent, **changes: Any) -> tuple[threading.Thread, list[Any]]:
    """A poll in a thread; its answer or error is put into the list."""
    result: list[Any] = []

    def poll() -> None:
        try:
            result.append(agent.poll(wait=20, **changes))
        except errors.AgentinaError as error:
            result.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    return thread, result


def wait_until_held(control: Any, agent: simulated.Agent) -> None:
    inside = control.plane.fleet.find(agent.activated.agent_id)
    deadline = time.monotonic() + deadlines.HANG
    while inside.waiter is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert inside.waiter is not None


def counted(control: Any, name: str) -> list[Any]:
    """What the store is given to read or write from here on."""
    given: list[Any] = []
    inner = getattr(control.plane.store, name)

    def noted(operation: Any, **more: Any) -> Any:
        given.append(operation)
        return inner(operation, **more)

    setattr(control.plane.store, name, noted)
    return given


# --- polls and claims --------------------------------------------------------------------------------------------


def test_a_submitted_job_wakes_one_held_poll(control: Any, operator: simulated.Operator) -> None:
    agents = [control.agent() for _ in range(3)]
    polls = []
    for agent in agents:
        polls.append(held_poll(agent))
        wait_until_held(control, agent)
    job = operator.submit()
    polls[0][0].join(deadlines.HANG)
    (assignment,) = agents[0].assignments(polls[0][1][0])
    assert (assignment.job_id, assignment.epoch, assignment.session) == (job, 1, agents[0].session)
    assert [result for _, result in polls[1:]] == [[], []]
    operator.submit()
    polls[1][0].join(deadlines.HANG)
    assert polls[2][1] == []
    operator.submit()
    polls[2][0].join(deadlines.HANG)


def test_a_waiting_agent_is_given_the_job_by_the_submission_itself(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    operator.submit()
    (first,) = agent.take()
    thread, result = held_poll(agent)
    wait_until_held(control, agent)
    writes = counted(control, "write")
    job = operator.submit()
    thread.join(deadlines.HANG)
    assert [assignment.job_id for assignment in agent.assignments(result[0])] == [job]
    assert len(writes) == 1
    texts = [event["text"].split()[0] for event in operator.show(job)["events"]]
    assert (first != job, texts) == (True, ["submitted", "given"])


def test_jobs_submitted_together_go_in_turns_to_all_who_wait(control: Any, operator: simulated.Operator) -> None:
    operator.submit()
    agents = [control.agent() for _ in range(3)]
    agents[0].take()  # The class of the jobs is known now.
    polls = []
    for agent, slots in zip(agents, (1, 4, 4), strict=True):
        polls.append(held_poll(agent, slots=slots))
        wait_until_held(control, agent)
    writes = counted(control, "write")
    made = [one["id"] for one in operator.submit_all(*({"name": str(number)} for number in range(6)))]
    for thread, _ in polls:
        thread.join(deadlines.HANG)
    taken = [
        [job.job_id for job in agent.assignments(result[0])] for agent, (_, result) in zip(agents, polls, strict=True)
    ]
    assert [sorted(map(made.index, jobs)) for jobs in taken] == [[0], [1, 3, 5], [2, 4]]
    assert len(writes) == 1
    assert {operator.state(job)[0] for job in made} == {"assigned"}


def test_jobs_submitted_together_that_find_no_room_are_queued(control: Any, operator: simulated.Operator) -> None:
    operator.submit()
    agent = control.agent()
    agent.take()
    thread, result = held_poll(agent, slots=3, memory=48 << 20)
    wait_until_held(control, agent)
    small, large = {"resources": {"memory": 16 << 20}}, {"resources": {"memory": 40 << 20}}
    made = [one["id"] for one in operator.submit_all(small, large, small, small, small)]
    thread.join(deadlines.HANG)
    taken = [made.index(job.job_id) for job in agent.assignments(result[0])]
    assert taken == [0, 2, 3]
    assert [operator.state(made[number]) for number in (1, 4)] == [("queued", "waiting-for-agent")] * 2
    assert len(agent.take(slots=8)) == 2


def test_of_jobs_submitted_together_all_are_stored_or_none(control: Any, operator: simulated.Operator) -> None:
    operator.submit()
    agent = control.agent()
    agent.take()
    thread, result = held_poll(agent, slots=4)
    wait_until_held(control, agent)
    with pytest.raises(errors.AgentinaError, match="JOB_NEED_UNKNOWN"):
        operator.submit_all({}, {"needs": ["job_0123456789abcdef"]})
    assert len(operator.call("GET", "/v1/jobs")["jobs"]) == 1
    # Whoever was chosen for one of them still waits for the next.
    assert thread.is_alive()
    job = operator.submit()
    thread.join(deadlines.HANG)
    assert [assignment.job_id for assignment in agent.assignments(result[0])] == [job]


def test_idempotency_keys_of_jobs_submitted_together(control: Any, operator: simulated.Operator) -> None:
    first = operator.submit_all({}, {"name": "b"}, {}, keys=("k.0", "k.1"))
    assert [one["created"] for one in first] == [True, True, True]
    again = operator.submit_all({}, {"name": "b"}, {"name": "c"}, keys=("k.0", "k.1", "k.2"))
    assert [one["created"] for one in again] == [False, False, True]
    assert [one["id"] for one in again[:2]] == [one["id"] for one in first[:2]]
    with pytest.raises(errors.AgentinaError, match="JOB_KEY_REUSED"):
        operator.submit_all({"name": "new"}, {"name": "other"}, keys=(None, "k.1"))
    assert len(operator.call("GET", "/v1/jobs")["jobs"]) == 4


def test_only_an_answer_that_was_sent_can_be_acknowledged(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    agent.poll(acknowledge=False)
    held = control.plane.fleet.held[f"{job}.1"]
    # As it is when a poll ends between a claim and its commit, and its empty answer is acknowledged.
    held.poll = fleet.UNSENT
    agent.acknowledged = 1
    assert agent.take() == [f"{job}.1"]
    assert agent.take() == []


def test_a_lost_answer_is_sent_again_until_acknowledged(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    first = agent.assignments(agent.poll(acknowledge=False))
    again = agent.assignments(agent.poll(acknowledge=False))
    assert [assignment.task_id for assignment in first + again] == [f"{job}.1"] * 2
    assert (first[0].poll, again[0].poll) == (1, 2)
    agent.acknowledged = 2
    assert agent.take() == []


def test_lost_answers_survive_a_restart_of_the_control_plane(tmp_path: Any) -> None:
    with simulated.process(tmp_path / "data", listen="127.0.0.1:0") as server:
        operator = simulated.Operator(server.url, server.token)
        agent = simulated.new_agent(server.url, operator)
        job = operator.submit()
        agent.poll(acknowledge=False)
        server.kill()
        server.start()
        restarted = simulated.Agent(server.url)
        restarted.__dict__ |= {**agent.__dict__, "_address": restarted._address, "_connection": None}
        assert restarted.take() == [f"{job}.1"]
        restarted.run(f"{job}.1")
        assert simulated.Operator(server.url, server.token).state(job) == ("succeeded", "exit-zero")


def test_a_newer_poll_takes_over_from_an_older_one(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    thread, result = held_poll(agent)
    wait_until_held(control, agent)
    copy = simulated.Agent(control.url, key=agent.key)
    copy.__dict__ |= {**agent.__dict__, "_connection": None}
    assert copy.take() == []
    thread.join(deadlines.HANG)
    assert result[0].assignments == []
    job = operator.submit()
    assert copy.take(wait=5) == [f"{job}.1"]


def test_a_broken_connection_gets_no_work(control: Any, operator: simulated.Operator) -> None:
    gone, present = control.agent(), control.agent()
    inside = control.plane.fleet.find(gone.activated.agent_id)
    body = wire.Poll(session=gone.session, number=1, slots=8, memory_bytes=1 << 40, wait_seconds=50)
    gone._connection.request("POST", "/v1/agent/poll", msgspec.json.encode(body), {"Authorization": gone.authorization})
    wait_until_held(control, gone)
    gone.close()
    deadline = time.monotonic() + deadlines.HANG
    while inside.waiter is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    job = operator.submit()
    assert present.take(wait=5) == [f"{job}.1"]


@pytest.mark.parametrize("when", ["together", "one after the other"])
@pytest.mark.parametrize("what", ["drained", "removed", "taken over"])
def test_work_goes_to_another_when_who_was_woken_for_it_may_not_take_it(
    control: Any, operator: simulated.Operator, what: str, when: str
) -> None:
    first, second = control.agent(), control.agent()
    job = operator.submit()
    (task,) = first.take()
    first.run(task, State.FAILED, Reason.EXIT_NONZERO)
    polls = []
    for agent in (first, second):
        polls.append(held_poll(agent))
        wait_until_held(control, agent)
    inside, identity = control.plane.fleet.find(first.activated.agent_id), first.activated.agent_id

    async def withdraw() -> None:
        if what == "drained":
            await administration.act_on_agent(control.plane, identity, "drain", reason="", actor="test")
        elif what == "removed":
            await administration.remove_agent(control.plane, identity, actor="test")
        else:
            opened = wire.SessionOpen(version="1", protocol=1, stream="s", boot_id="boot", runners=["command"])
            await sessions.open_session(control.plane, inside, opened)

    async def both() -> None:
        again = job_service.retry(control.plane, job, actor="test")
        if when == "together":
            await asyncio.gather(again, withdraw())
            return
        await again
        # The first one is woken now, and has not looked yet.
        await withdraw()

    control.run(both)
    for thread, _ in polls:
        thread.join(deadlines.HANG)
    (answer,) = polls[1][1]
    assert [assignment.job_id for assignment in second.assignments(answer)] == [job]


def test_an_agent_that_counts_beyond_all_numbers_keeps_no_job_from_being_submitted(
    control: Any, operator: simulated.Operator
) -> None:
    agent = control.agent()
    operator.submit()
    assert len(agent.take()) == 1
    agent.poll_number = 1 << 64
    thread, result = held_poll(agent)
    thread.join(deadlines.HANG)
    assert [error.code for error in result] == [errors.INPUT_INVALID.code]
    operator.submit()


def test_priority_then_age_decide_and_room_limits(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    low, first, second = operator.submit(priority=10), operator.submit(), operator.submit()
    urgent = operator.submit(priority=90)
    assert agent.take(slots=3) == [f"{job}.1" for job in (urgent, first, second)]
    assert agent.take(slots=0) == []
    assert agent.take(slots=1) == [f"{low}.1"]


def test_memory_that_does_not_fit_waits_and_lets_smaller_ones_pass(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    big = operator.submit(resources={"memory": "8GiB"}, priority=90)
    small = operator.submit(resources={"memory": "1GiB"})
    assert agent.take(memory=2 << 30) == [f"{small}.1"]
    (blocker,) = operator.show(big)["blockers"]
    assert "8 GiB" in blocker
    assert agent.take(memory=2 << 30) == []
    assert agent.take(memory=8 << 30) == [f"{big}.1"]


def test_jobs_are_looked_for_only_where_some_may_be(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    operator.submit()
    assert len(agent.take()) == 1
    assert agent.take() == []
    reads = counted(control, "read")
    assert agent.take() == []
    assert reads == []
    job = operator.submit()
    assert agent.take() == [f"{job}.1"]


def test_rows_of_jobs_that_do_not_fit_are_not_read() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate.migrate(connection, migrate.packaged(), now_ms=1)
    plans: list[str] = []

    class Planned:
        def one(self, sql: str, **values: object) -> None:
            plans.extend(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))

    planned: Any = Planned()
    jobs.is_any_ready(planned, 1, 1 << 30)
    connection.close()
    assert plans == ["SEARCH jobs USING COVERING INDEX jobs_ready (class_id=?)"]


def test_the_license_limits_tasks_at_once(control: Any, operator: simulated.Operator) -> None:
    operator.call("PUT", "/v1/organizations/default", {"max_concurrent_tasks_per_agent": 2})
    agent = control.agent()
    for _ in range(3):
        operator.submit()
    first = agent.take()
    assert len(first) == 2
    assert agent.take() == []
    agent.run(first[0])
    assert len(agent.take()) == 1


def test_roles_labels_and_organizations_keep_jobs_apart(control: Any, operator: simulated.Operator) -> None:
    operator.call("PUT", "/v1/organizations/other", {})
    foreign = operator.submit(organization="other")
    picky = operator.submit(role="coder", labels={"gpu": "a100"})
    plain = control.agent()
    assert plain.take() == []
    assert "role 'coder'" in operator.show(picky)["blockers"][0]
    assert "no agents" in operator.show(foreign)["blockers"][0]
    matching = control.agent(role="coder", labels={"gpu": "a100", "zone": "b"})
    assert matching.take() == [f"{picky}.1"]


def test_a_job_that_hosts_give_back_for_want_of_a_gateway_says_so(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    agent.heartbeat(host=wire.HostFacts(gateway="it has none"))
    agent.take()
    job = operator.submit(budget={"tokens": 10})
    (blocker,) = operator.show(job)["blockers"]
    assert "it has none (GATEWAY_UNUSABLE)" in blocker
    codex = operator.submit(runner="codex", payload={"prompt": "x"})
    assert "gateway" not in operator.show(codex)["blockers"][0]
    agent.heartbeat(host=wire.HostFacts(gateway="no key", attention=["GATEWAY_UNUSABLE"]))
    (blocker,) = operator.show(codex)["blockers"]
    assert "no key (GATEWAY_UNUSABLE)" in blocker


def test_a_job_goes_only_to_agents_whose_gateway_serves_it(control: Any, operator: simulated.Operator) -> None:
    """Also while a poll waits, and when the gateway is another; an agent that does not tell is given all, as ever."""
    agent = control.agent()
    assert agent.take(gateway="none") == []
    budget = operator.submit(budget={"tokens": 10})
    hosts = operator.submit(scope={"hosts": ["example.com"]})
    plain = operator.submit()
    assert agent.take(gateway="unusable") == [f"{plain}.1"]
    for job in (budget, hosts):
        (blocker,) = operator.show(job)["blockers"]
        assert "No suitable agent has a gateway for the job's budget or hosts. On " in blocker
    assert agent.take(gateway="none") == [f"{hosts}.1"]
    thread, result = held_poll(agent, gateway="none")
    wait_until_held(control, agent)
    again = operator.submit(budget={"tokens": 10})
    other = operator.submit()
    thread.join(deadlines.HANG)
    assert [assigned.task_id for assigned in agent.assignments(result[0])] == [f"{other}.1"]
    assert agent.take() == [f"{budget}.1", f"{again}.1"]


def test_quarantined_agent_is_not_drained(control: Any, operator: simulated.Operator) -> None:
    """Why it is in quarantine would be forgotten, and what an operator's `resume` after one means."""
    agent = control.agent()
    address = f"/v1/agents/{agent.activated.agent_id}"
    operator.call("POST", f"{address}/quarantine", {"reason": "cloned"})
    with pytest.raises(errors.AgentinaError) as refused:
        operator.call("POST", f"{address}/drain", {"reason": "maintenance"})
    assert refused.value.entry is errors.STATE_CONFLICT
    shown = operator.call("GET", address)
    assert (shown["state"], shown["state_reason"]) == ("quarantined", "cloned")
    assert operator.call("POST", f"{address}/resume", {})["state"] == "active"
    assert operator.call("POST", f"{address}/drain", {})["state"] == "draining"


@pytest.mark.parametrize("act", ["drain", "quarantine"])
def test_an_agent_set_aside_is_told_at_once_and_gets_nothing(
    control: Any, operator: simulated.Operator, act: str
) -> None:
    agent = control.agent()
    thread, result = held_poll(agent)
    wait_until_held(control, agent)
    operator.call("POST", f"/v1/agents/{agent.activated.agent_id}/{act}", {"reason": "disk"})
    thread.join(deadlines.HANG)
    directives = result[0].directives
    assert (directives.drain, directives.quarantine) == ((True, "") if act == "drain" else (False, "disk"))
    job = operator.submit()
    assert agent.take() == []
    operator.call("POST", f"/v1/agents/{agent.activated.agent_id}/resume")
    assert agent.take() == [f"{job}.1"]


# --- reports and results -----------------------------------------------------------------------------------------


def test_reports_are_applied_once_and_in_order(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    (task,) = agent.take()
    reports = [agent.fact(task, "accepted"), agent.fact(task, "running", pid=7), agent.finished(task)]
    assert agent.report(*reports[:2]).applied == 2
    assert agent.report(*reports[:2]).applied == 2
    answer = agent.report(*reports)
    assert (answer.applied, answer.forget) == (3, [task])
    assert agent.report(reports[2]).forget == [task]
    shown = operator.show(job)
    assert [event["state"] for event in shown["events"]] == ["queued", "assigned", "preparing", "running", "succeeded"]
    assert (shown["job"]["attempts"], shown["tasks"][0]["pid"]) == (1, 7)


def test_reports_about_tasks_of_others_change_nothing(control: Any, operator: simulated.Operator) -> None:
    owner, thief = control.agent(), control.agent()
    job = operator.submit()
    (task,) = owner.take()
    assert (
        thief.report(thief.finished(task), thief.fact("nonsense", "running"), thief.fact(f"{job}.9", "note")).applied
        == 3
    )
    assert operator.state(job) == ("assigned", "assigned")
    for name in (task, "../../etc"):
        with pytest.raises(errors.AgentinaError):
            thief.output(name, 0, b"x")


def test_a_new_stream_may_repeat_what_is_known(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    (task,) = agent.take()
    agent.run(task)
    agent.stream = "another"
    agent.open((task, State.SUCCEEDED))
    answer = agent.report(agent.finished(task, State.FAILED, Reason.EXIT_NONZERO))
    assert answer.forget == [task]
    assert operator.state(job) == ("succeeded", "exit-zero")


def test_retries_follow_the_policy_and_end_as_a_dead_letter(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit(retry={"max_attempts": 2, "on": ["failed"], "backoff": 30})
    (first,) = agent.take()
    agent.run(first, State.FAILED, Reason.EXIT_NONZERO, exit_code=3, detail="It ended with exit code 3.")
    assert operator.state(job) == ("queued", "retry-backoff")
    assert agent.take() == []
    shown = operator.show(job)
    assert "before the next attempt" in shown["blockers"][0]
    assert shown["events"][-1]["text"] == "failed: It ended with exit code 3; again in 30s"
    control.step_boot(31)
    (second,) = agent.take()
    assert second == f"{job}.2"
    agent.run(second, State.FAILED, Reason.EXIT_NONZERO)
    shown = operator.show(job)
    assert (shown["job"]["state"], shown["dead_letter"], shown["job"]["attempts"]) == ("failed", True, 2)
    operator.call("POST", f"/v1/jobs/{job}/retry")
    (third,) = agent.take()
    agent.run(third)
    assert operator.state(job) == ("succeeded", "exit-zero")


def test_a_backoff_of_before_a_retry_by_hand_shortens_no_later_one(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit(retry={"max_attempts": 3, "on": ["failed"], "backoff": 60})
    (first,) = agent.take()
    agent.run(first, State.FAILED, Reason.EXIT_NONZERO)
    operator.call("POST", f"/v1/jobs/{job}/cancel")
    control.step_boot(50)
    operator.call("POST", f"/v1/jobs/{job}/retry")
    (second,) = agent.take()
    agent.run(second, State.FAILED, Reason.EXIT_NONZERO)
    control.step_boot(30)
    assert agent.take() == []
    control.step_boot(31)
    assert agent.take() == [f"{job}.3"]


def test_a_clock_that_was_a_day_ahead_prolongs_no_backoff_after_a_restart(tmp_path: Any) -> None:
    control = conftest.ControlPlane(tmp_path)
    control.clock.wall_offset_ms = 86_400_000
    with control:
        agent = control.agent()
        job = control.operator.submit(retry={"max_attempts": 2, "on": ["failed"], "backoff": 60, "max_backoff": 90})
        (first,) = agent.take()
        agent.run(first, State.FAILED, Reason.EXIT_NONZERO)
    with conftest.ControlPlane(tmp_path) as again:
        back = simulated.Agent(again.url, key=agent.key)
        back.activated = agent.activated
        back.authenticate(now_ms=again.clock.wall_ms())
        back.open()
        assert back.take() == []
        again.step_boot(91)
        assert back.take() == [f"{job}.2"]


def test_a_backoff_whose_end_cannot_be_stored_ends_later(
    control: Any, operator: simulated.Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = control.agent()
    job = operator.submit(retry={"max_attempts": 2, "on": ["failed"], "backoff": 60})
    (first,) = agent.take()
    agent.run(first, State.FAILED, Reason.EXIT_NONZERO)

    async def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(control.plane, "write", fail)
        with pytest.raises(sqlite3.OperationalError):
            control.step_boot(61)
    control.step_boot(1)
    assert agent.take() == [f"{job}.2"]


@pytest.mark.parametrize(("act", "state"), [("retry", "queued"), ("stop", "failed"), ("report", "failed")])
def test_run_stopped_for_its_health_begins_afresh_where_the_job_wants_that(
    control: Any, operator: simulated.Operator, act: str, state: str
) -> None:
    agent = control.agent()
    job = operator.submit(health={"act": act}, retry={"max_attempts": 2, "backoff": 0})
    (first,) = agent.take()
    agent.run(first, State.FAILED, Reason.UNHEALTHY)
    assert operator.state(job)[0] == state
    if act == "retry":
        (second,) = agent.take()
        agent.run(second, State.FAILED, Reason.UNHEALTHY)
        assert operator.state(job) == ("failed", "unhealthy")


def test_needs_are_met_or_cancel_what_depends_on_them(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    good, bad = operator.submit(name="good"), operator.submit(name="bad")
    after_good = operator.submit(needs=[good, good])
    after_bad = operator.submit(needs=[good, bad])
    after_that = operator.submit(needs=[after_bad, after_good])
    assert good in operator.show(after_good)["blockers"][0]
    assert agent.take() == [f"{good}.1", f"{bad}.1"]
    agent.run(f"{good}.1")
    assert agent.take() == [f"{after_good}.1"]
    agent.run(f"{bad}.1", State.FAILED, Reason.EXIT_NONZERO)
    assert operator.state(after_bad) == ("canceled", "need-not-met")
    assert operator.state(after_that) == ("canceled", "need-not-met")
    late = operator.submit(needs=[bad])
    assert operator.state(late) == ("canceled", "need-not-met")
    with pytest.raises(errors.AgentinaError, match="JOB_NEED_UNKNOWN"):
        operator.submit(needs=["job_0000000000000000"])


def test_a_needed_job_that_succeeds_twice_is_counted_once(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    first, second = operator.submit(), operator.submit(priority=0)
    dependent = operator.submit(needs=[first, second])
    for number in (1, 2):
        (task,) = agent.take(slots=1)
        assert task == f"{first}.{number}"
        agent.run(task)
        if number == 1:
            operator.call("POST", f"/v1/jobs/{first}/retry")
    assert operator.state(dependent) == ("queued", "waiting-for-needs")
    (task,) = agent.take()
    agent.run(task)
    assert agent.take() == [f"{dependent}.1"]


@pytest.mark.parametrize(
    ("wall_seconds", "expected"),
    [(None, 0), (-5.0, 0), (2400.0, 2_400_000), (7200.0, 3_600_000), (1e308, 3_600_000)],
)
def test_job_took_what_its_host_measured_though_its_start_was_heard_with_its_end(
    control: Any, operator: simulated.Operator, wall_seconds: float | None, expected: int
) -> None:
    agent = control.agent()
    job = operator.submit()
    (task,) = agent.take()
    control.clock.wall_offset_ms += 3_600_000  # an hour in which nothing was heard
    agent.authenticate(now_ms=control.clock.wall_ms())
    agent.run(task, usage=wire.Usage(wall_seconds=wall_seconds))
    shown = operator.show(job)
    for one in (shown["job"], shown["tasks"][0]):
        assert 0 <= one["ended_ms"] - one["started_ms"] - expected < 60_000


def test_second_attempt_leaves_when_the_job_began(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit(retry={"max_attempts": 2, "on": ["failed"], "backoff": 0})
    (first,) = agent.take()
    agent.run(first, State.FAILED, Reason.EXIT_NONZERO)
    began = operator.show(job)["job"]["started_ms"]
    control.clock.wall_offset_ms += 3_600_000
    agent.authenticate(now_ms=control.clock.wall_ms())
    (second,) = agent.take()
    agent.run(second, usage=wire.Usage(wall_seconds=60.0))
    shown = operator.show(job)
    assert shown["job"]["started_ms"] == began
    assert 60_000 <= shown["tasks"][1]["ended_ms"] - shown["tasks"][1]["started_ms"] < 120_000


def test_cancellation_of_waiting_and_of_running_jobs(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    waiting, running = operator.submit(priority=0), operator.submit()
    (task,) = agent.take(slots=1)
    agent.report(agent.fact(task, "accepted"), agent.fact(task, "running"))
    canceled = operator.call("POST", f"/v1/jobs/{waiting}/cancel", {"reason": "not needed"})["job"]
    assert (canceled["state"], canceled["detail"]) == ("canceled", "by operator:admin: not needed")
    thread, result = held_poll(agent)
    wait_until_held(control, agent)
    operator.call("POST", f"/v1/jobs/{running}/cancel")
    thread.join(deadlines.HANG)
    assert [(stop.task_id, stop.reason) for stop in result[0].stop] == [(task, Reason.CANCELED_BY_OPERATOR)]
    assert agent.poll().stop == []
    assert [stop.task_id for stop in agent.heartbeat((task, State.RUNNING)).stop] == [task]
    agent.report(agent.finished(task, State.FAILED, Reason.KILLED_BY_SIGNAL))
    assert operator.state(running) == ("canceled", "canceled-by-operator")
    with pytest.raises(errors.AgentinaError, match="JOB_FINISHED"):
        operator.call("POST", f"/v1/jobs/{running}/cancel")


def test_a_stop_in_a_lost_answer_is_sent_again(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    (task,) = agent.take()
    operator.call("POST", f"/v1/jobs/{job}/cancel")
    assert [len(agent.poll(acknowledge=False).stop) for _ in range(2)] == [1, 1]
    agent.acknowledged = agent.poll_number
    assert agent.poll().stop == []
    agent.report(agent.fact(task, "returned", detail="stopped before it began"))
    assert operator.state(job) == ("canceled", "canceled-by-operator")


def test_an_idempotency_key_makes_one_job(control: Any, operator: simulated.Operator) -> None:
    first = operator.submit(key="nightly-1")
    assert operator.submit(key="nightly-1") == first
    with pytest.raises(errors.AgentinaError, match="JOB_KEY_REUSED") as caught:
        operator.submit(key="nightly-1", name="other")
    assert caught.value.context["job"] == first
    assert len(operator.call("GET", "/v1/jobs")["jobs"]) == 1


def test_secret_values_are_shown_nowhere(control: Any, operator: simulated.Operator) -> None:
    secret = "hunter2-hunter2"
    agent = control.agent()
    job = operator.submit(environment={"PLAIN": secret, "MARKED": {"secret": secret}})
    for path in (f"/v1/jobs/{job}", "/v1/jobs", f"/v1/jobs/{job}/events", "/v1/audit", "/metrics"):
        assert secret.encode() not in operator.raw("GET", path).read()
    bad = {"name": "x", "payload": {"argv": ["true"]}, "environment": {"BAD NAME": secret, "N": 5}}
    answer = operator.raw("POST", "/v1/jobs", msgspec.json.encode(bad))
    assert secret.encode() not in answer.read()
    (assignment,) = agent.assignments(agent.poll())
    assert assignment.job.environment["PLAIN"] == secret


# --- output and artifacts ----------------------------------------------------------------------------------------


def test_output_goes_on_from_the_offset_that_is_stored(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit(limits={"output": 1})
    (task,) = agent.take()
    assert agent.output(task, 0, b"\xff\x00abc")["offset"] == 5
    for offset in (0, 4, 9):
        with pytest.raises(errors.AgentinaError, match="OFFSET_MISMATCH") as caught:
            agent.output(task, offset, b"zzz")
        assert caught.value.context["expected"] == 5
    answer = operator.raw("GET", f"/v1/jobs/{job}/output?offset=2")
    assert answer.read() == b"abc"
    headers = dict(answer.getheaders())
    assert (headers["agentina-offset"], headers["agentina-final"], headers["agentina-task"]) == ("5", "false", task)
    with pytest.raises(errors.AgentinaError, match="INPUT_TOO_LARGE"):
        agent.output(task, 5, b"x" * (1 << 20))
    agent.run(task, output_bytes=5)
    answer = operator.raw("GET", f"/v1/jobs/{job}/output?task={task}&offset=5&wait=10")
    assert (answer.read(), answer.getheader("agentina-final")) == (b"", "true")


def test_a_task_is_not_forgotten_before_its_output_is_complete(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    operator.submit()
    (task,) = agent.take()
    assert agent.run(task, output_bytes=3).forget == []
    assert agent.heartbeat((task, State.SUCCEEDED)).forget == []
    agent.output(task, 0, b"abc")
    assert agent.heartbeat((task, State.SUCCEEDED)).forget == [task]
    assert agent.open((task, State.SUCCEEDED)).forget == [task]


def test_followers_wake_when_output_arrives(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    (task,) = agent.take()
    got: list[bytes] = []
    follower = simulated.Operator(control.url, control.token)
    thread = threading.Thread(target=lambda: got.append(follower.raw("GET", f"/v1/jobs/{job}/output?wait=20").read()))
    thread.start()
    deadline = time.monotonic() + deadlines.HANG
    while not control.plane.bells._waiting and time.monotonic() < deadline:
        time.sleep(0.005)
    agent.output(task, 0, b"live")
    thread.join(deadlines.HANG)
    assert got == [b"live"]
    follower.close()


def test_artifacts_resume_and_are_verified(control: Any, operator: simulated.Operator) -> None:
    agent = control.agent()
    job = operator.submit()
    (task,) = agent.take()
    content = bytes(range(256)) * 5000
    info = wire.ArtifactInfo(name="out/report.bin", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    path = f"/v1/agent/tasks/{task}/artifacts"

    def begin(artifact: wire.ArtifactInfo) -> Any:
        return agent.call("POST", path, wire.ArtifactBegin(session=agent.session, artifact=artifact))

    def put(offset: int, piece: bytes) -> Any:
        return agent.call("PUT", f"{path}/{info.name}?session={agent.session}&offset={offset}", piece)

    assert begin(info) == {"offset": 0}
    put(0, content[:1000])
    assert begin(info)["offset"] == 1000
    put(1000, b"x" * 1_000_000)
    with pytest.raises(errors.AgentinaError, match="ARTIFACT_CORRUPT"):
        put(1_001_000, content[1_001_000:])
    assert begin(info) == {"offset": 0}
    put(0, content[:1_000_000])
    assert put(1_000_000, content[1_000_000:]) == {"offset": len(content), "complete": True}
    assert begin(info) == {"offset": len(content), "complete": True}
    listed = operator.call("GET", f"/v1/jobs/{job}/artifacts")["artifacts"]
    assert [(item["name"], item["size"]) for item in listed] == [(info.name, info.size)]
    assert operator.raw("GET", f"/v1/jobs/{job}/artifacts/{info.name}").read() == content
    empty = wire.ArtifactInfo(name="empty", size=0, sha256=hashlib.sha256(b"").hexdigest())
    assert begin(empty) == {"offset": 0, "complete": True}
    for name in ("../x", "/etc/passwd", "a//b", "a\nb"):
        with pytest.raises(errors.AgentinaError, match="NAME_INVALID"):
            begin(wire.ArtifactInfo(name=name, size=1, sha256="0" * 64))
    with pytest.raises(errors.AgentinaError, match="INPUT_TOO_LARGE"):
        begin(wire.ArtifactInfo(name="huge", size=1 << 40, sha256="0" * 64))


@pytest.mark.parametrize(
    ("retry", "said"),
    [
        ({}, "its retry is for lost;"),
        ({"on": []}, "its retry is for nothing;"),
        ({"on": ["failed"], "max_attempts": 1}, "all attempts are used;"),
    ],
)
def test_a_job_is_shown_with_who_asked_and_why_nothing_is_tried_any_more(
    control: Any, command: Any, retry: dict[str, Any], said: str
) -> None:
    agent = control.agent(labels={"zone": "a"})
    job = control.operator.submit(retry=retry, labels={"zone": "a"})
    (task,) = agent.take()
    agent.run(task, state=State.FAILED, reason=Reason.EXIT_NONZERO)
    code, out, _ = command("job", "show", job)
    assert code == 0
    assert f"dead letter   yes: {said}" in out
    assert "labels        zone=a" in out
    assert "reason        exit-nonzero" in out
    assert "submitted by operator:admin" in out
