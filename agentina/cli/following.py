"""Follow a job: its output as it comes, what happens to it, and how it ended.

The job does not depend on whoever watches: an interrupted or unreachable follower changes nothing, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agentina import errors
from agentina.cli import interrupts, output
from agentina.client import api as api_client
from agentina.protocol import api, states, units

#: Following survives the control plane being away for some minutes.
PATIENT: Final = api_client.Patience(attempts=60)
#: Seconds one request is held open.
_HOLD: Final = 20.0
#: Seconds a job may be queued before the reader is told why.
_EXPLAIN_AFTER: Final = 1.5

Write = Callable[[bytes], None]


def follow(client: api_client.Client, job: str, *, write: Write) -> api.JobView:
    """Pass the job's output to ``write`` until the job has ended; say on stderr what else happens.

    Each attempt's output is written once, in order. Returns the ended job.

    Raises:
        AgentinaError: As the client does.
        KeyboardInterrupt: After saying that the job goes on.

    """
    try:
        client.patience = PATIENT
        return _Follower(client, job, write).run()
    except KeyboardInterrupt:
        interrupts.heard()
        output.say("")
        output.say(f"{job} goes on without you.")
        output.say(f"  follow it: agentina job logs -f {job}")
        output.say(f"  end it:    agentina job cancel {job}")
        raise


class _Follower:
    """One follow-through of a job."""

    def __init__(self, client: api_client.Client, job: str, write: Write) -> None:
        self._client = client
        self._job = job
        self._write = write
        self._event = 0
        self._said = ""
        self._explained: set[str] = set()
        self._state: states.State | None = None
        #: Tasks whose output has been written to its end.
        self._shown: set[str] = set()

    def run(self) -> api.JobView:
        """Follow until the end."""
        hold = _EXPLAIN_AFTER
        while True:
            news = self._client.get_events(self._job, after=self._event, wait=hold)
            self._note(news)
            if news.task_id is not None and news.task_id not in self._shown:
                self._stream(news.task_id)
                continue  # whether another attempt follows is in the events
            if news.final:
                return self._client.get_job(self._job)
            if news.state is states.State.QUEUED and not news.events:
                self._explain()
                hold = _HOLD

    def _note(self, news: api.JobEvents) -> None:
        for event in news.events:
            self._event = max(self._event, event.number)
            # The first lines of each life are what everybody expects; what a reader needs are the surprises.
            surprise = event.state is states.State.QUEUED and event.number > 1
            if surprise and event.text != self._said:
                self._said = event.text  # what repeats is said once
                output.say(f"{self._job}: {output.clean(event.text)}")
        self._state = news.state

    def _explain(self) -> None:
        for blocker in self._client.get_job(self._job).blockers:
            if blocker not in self._explained:
                self._explained.add(blocker)  # it may last for hours
                output.say(f"{self._job} waits: {output.clean(blocker)}")

    def _stream(self, task: str) -> None:
        offset = 0
        while True:
            piece = self._client.get_output(self._job, task=task, offset=offset, wait=_HOLD)
            if piece.data:
                self._write(piece.data)
            offset = piece.offset
            if piece.final and not piece.data:
                break
        self._shown.add(task)


def outcome_line(view: api.JobView) -> str:
    """One sentence about how a job ended."""
    job = view.job
    attempts = "" if job.attempts <= 1 else f" after {job.attempts} attempts"
    took = ""
    if job.started_ms is not None and job.ended_ms is not None:
        took = f" in {units.show_duration(max(job.ended_ms - job.started_ms, 0) / 1000)}"
    detail = output.clean(job.detail) or states.REASONS[job.reason]
    return f"{job.id} {job.state.value}{took}{attempts}: {detail}"


def exit_code(view: api.JobView) -> int:
    """What a command that followed the job ends with."""
    return int(errors.Exit.OK if view.job.state is states.State.SUCCEEDED else errors.Exit.FAILED)
