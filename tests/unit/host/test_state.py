from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.host.work import state
from agentina.host.work.state import Do, Found, Phase, Say
from agentina.protocol import wire
from agentina.protocol.states import Reason, State

GOOD = wire.Outcome(state=State.SUCCEEDED, reason=Reason.EXIT_ZERO)
BAD = wire.Outcome(state=State.FAILED, reason=Reason.WORKSPACE_FAILED)
STOP = state.StopAsked(Reason.CANCELED_BY_OPERATOR)

EVENTS: list[state.Event] = [
    state.Accepted(),
    state.Prepared(),
    state.Failed(BAD),
    state.Unable("no room"),
    state.Interrupted(),
    state.Started(7),
    state.StartedBefore(),
    state.Ended(),
    state.Ended(is_all=True),
    state.Collected(GOOD),
    state.Uploaded(GOOD),
    STOP,
    state.StopAsked(Reason.LEASE_EXPIRED),
    state.StopAsked(Reason.CHECKPOINT, grace_seconds=3.0),
    state.Forgotten(),
]


OPERATIONS = {Do.PREPARE, Do.START, Do.WATCH, Do.COLLECT, Do.UPLOAD}


def commands_without_reports(commands: list[state.Command]) -> list[Do]:
    return [command for command in commands if isinstance(command, Do)]


def run(task: state.Task, *events: state.Event) -> tuple[state.Task, list[state.Command]]:
    commands: list[state.Command] = []
    for event in events:
        task, more = state.advance(task, event)
        commands += more
    return task, commands


def test_whole_life_of_a_task() -> None:
    task, commands = run(
        state.Task(Phase.ACCEPTING),
        state.Accepted(),
        state.Prepared(),
        state.Started(7),
        state.Ended(),
        state.Collected(GOOD),
        state.Uploaded(GOOD),
        state.Forgotten(),
    )
    assert task.phase is Phase.GONE
    assert commands == [
        Do.PREPARE, Do.START, Say("running", pid=7), Do.WATCH, Say("finishing"), Do.COLLECT, Do.UPLOAD,
        Say("finished", outcome=GOOD), Do.REMOVE,
    ]  # fmt: skip


def test_task_that_left_nothing_to_collect_is_not_said_to_be_finishing() -> None:
    task, commands = run(state.Task(Phase.RUNNING), state.Ended(is_all=True))
    assert (task.phase, commands) == (Phase.COLLECTING, [Do.COLLECT])


@pytest.mark.parametrize("before", [0, 1])
def test_stop_before_the_start_never_starts(before: int) -> None:
    events: list[state.Event] = [state.Accepted(), state.Prepared()]
    events.insert(before, STOP)
    task, commands = run(state.Task(Phase.ACCEPTING), *events)
    assert Do.START not in commands
    assert task.outcome is not None
    assert task.outcome.state is State.CANCELED


def test_stop_while_starting_waits_for_the_start() -> None:
    task, commands = run(state.Task(Phase.STARTING), STOP, state.Started(7))
    assert task.phase is Phase.RUNNING
    assert commands == [Say("running", pid=7), Do.WATCH, Do.STOP]


def test_task_started_before_is_watched_and_not_started() -> None:
    task, commands = run(state.Task(Phase.STARTING), state.StartedBefore())
    assert (task.phase, commands) == (Phase.RUNNING, [Do.WATCH])


def test_forget_while_uploading_breaks_it_off() -> None:
    task, commands = run(state.Task(Phase.UPLOADING, outcome=GOOD), state.Forgotten())
    assert (task.phase, commands) == (Phase.GONE, [Do.INTERRUPT, Do.REMOVE])


def test_unable_host_gives_the_task_back() -> None:
    task, commands = run(state.Task(Phase.PREPARING), state.Unable("disk full"))
    assert commands == [Say("returned", detail="disk full")]
    assert task.returned
    assert task.shown is State.PREPARING


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_any_order_of_events_keeps_the_promises(events: list[state.Event]) -> None:
    task = state.Task(Phase.ACCEPTING)
    starts = finals = removes = 0
    accepted = told_to_end = False
    for event in events:
        gone = task.phase is Phase.GONE
        accepted = accepted or isinstance(event, state.Accepted)
        told_to_end = told_to_end or (
            isinstance(event, state.StopAsked | state.Forgotten) and task.phase in {Phase.ACCEPTING, Phase.PREPARING}
        )
        task, commands = state.advance(task, event)
        assert not (gone and commands)
        assert len(set(commands_without_reports(commands)) & OPERATIONS) <= 1
        for command in commands:
            if isinstance(command, Say):
                assert finals == 0, "something was said after the final word"
                finals += command.kind in {"finished", "returned"}
            starts += command is Do.START
            removes += command is Do.REMOVE
            assert command is not Do.START or (accepted and not told_to_end)
    assert starts <= 1
    assert finals <= 1
    assert removes <= 1
    assert removes == 0 or any(isinstance(event, state.Forgotten) for event in events)
    assert task.phase is not Phase.REPORTED or finals == 1


@given(st.sampled_from(list(Found)), st.lists(st.sampled_from(EVENTS), max_size=20))
def test_resumed_task_is_started_only_when_it_never_was(found: Found, events: list[state.Event]) -> None:
    task, commands = state.resume(found, None if found in {Found.UNSTARTED, Found.RUNNING, Found.ENDED} else GOOD)
    _, more = run(task, *events)
    started = [command for command in commands + more if command is Do.START]
    assert len(started) <= (found is Found.UNSTARTED)


def test_stop_reasons_decide_the_outcome_of_an_unstarted_task() -> None:
    assert state.stopped_outcome(Reason.LEASE_EXPIRED, "").state is State.LOST
    assert state.stopped_outcome(Reason.NEED_NOT_MET, "").state is State.CANCELED


def test_a_second_wish_for_the_end_is_heard_if_it_is_in_more_of_a_hurry() -> None:
    """The host is drained, then it is about to go: the reason stays, the grace gets shorter, and never longer."""
    drained = state.StopAsked(Reason.CHECKPOINT, "drained", 30.0)
    task, commands = run(
        state.Task(Phase.RUNNING), drained, state.StopAsked(Reason.CHECKPOINT, "preempted", 10.0), STOP, drained
    )
    assert task.stop == state.StopAsked(Reason.CHECKPOINT, "drained", 10.0)
    assert commands == [Do.STOP] * 4
