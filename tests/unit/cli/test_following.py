from __future__ import annotations

from typing import Any, cast

import pytest

from agentina.cli import following
from agentina.client import api as clients
from agentina.protocol import api, jobs
from agentina.protocol.states import Reason, State

JOB = "job_0"


class Queue:
    """A control plane with one job that nobody takes for a while. Time passes only in held requests."""

    patience = clients.Patience()

    def __init__(self, *, taken_after: float) -> None:
        self.seconds = 0.0
        self.explained: list[float] = []
        self._taken_after = taken_after

    @property
    def state(self) -> State:
        return State.QUEUED if self.seconds < self._taken_after else State.CANCELED

    def get_events(self, _: str, *, after: int, wait: float) -> api.JobEvents:
        news = [] if after else [api.JobEvent(number=1, at_ms=0, text="submitted", state=State.QUEUED)]
        if not news:
            self.seconds += wait
        return api.JobEvents(events=news, state=self.state, final=self.state is not State.QUEUED)

    def get_job(self, _: str) -> api.JobView:
        if self.state is State.QUEUED:
            self.explained.append(self.seconds)
        summary = api.JobSummary(
            id=JOB, name="n", state=self.state, reason=Reason.WAITING_FOR_AGENT, organization="default", priority=50,
            created_ms=0,
        )  # fmt: skip
        blockers = ["None of 3 agents has the role 'x'.", "All are busy."][: len(self.explained)]
        return api.JobView(
            job=summary, spec=jobs.JobSpec(name="n", payload=jobs.Payload(argv=["true"])), blockers=blockers
        )


def test_who_waits_is_told_why_within_seconds_and_each_reason_once(capsys: pytest.CaptureFixture[str]) -> None:
    queue = Queue(taken_after=60)
    view = following.follow(cast("Any", queue), JOB, write=lambda _: None)
    assert view.job.state is State.CANCELED
    assert queue.explained[0] < 3
    assert queue.explained[1] - queue.explained[0] > 10, "it is not asked all the time"
    assert [line.partition(" waits: ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "None of 3 agents has the role 'x'.", "All are busy.",
    ]  # fmt: skip
