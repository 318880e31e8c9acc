"""kill -9 of daemon and control plane at random, while hundreds of jobs run: nothing lost, nothing done twice.

Each job appends one line to a file outside agentina's reach, so a second execution, even an unreported one, shows.
"""

from __future__ import annotations

import collections
import os
import random
import threading
from pathlib import Path

import pytest

from agentina import errors
from agentina.protocol.states import State
from tests.acceptance import fleet as fleets
from tests.fakes import deadlines

KILLS = int(os.environ.get("AGENTINA_TEST_KILLS", "200"))
JOBS = max(40, KILLS * 2)
SEED = int(os.environ.get("AGENTINA_TEST_SEED", "20261121"))

JOB = """
echo "$NUMBER" >> "$MARKS"
i=0
while [ $i -lt 20 ]; do echo "job $NUMBER line $i"; i=$((i+1)); sleep "$PAUSE"; done
"""


def expected_output(number: int) -> bytes:
    return b"".join(b"job %d line %d\n" % (number, line) for line in range(20))


class Submitter(threading.Thread):
    """Submits jobs all the while, as a person's script would: with retries, through every outage."""

    def __init__(self, fleet: fleets.Fleet, marks: Path, chance: random.Random) -> None:
        super().__init__(name="submitter", daemon=True)
        self._fleet = fleet
        self._marks = marks
        self._chance = chance
        self.jobs: dict[int, str] = {}
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for number in range(JOBS):
                self.jobs[number] = self._submit(number)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.failure = error

    def _submit(self, number: int) -> str:
        """One submission, repeated with the same idempotency key until it is answered."""
        environment = {
            "NUMBER": str(number),
            "MARKS": str(self._marks),
            "PAUSE": str(self._chance.choice([0, 0, 0.002, 0.02])),
        }
        document = {
            "name": f"chaos-{number}",
            "payload": {"script": JOB},
            "environment": environment,
            "resources": {"memory": "16MiB"},
            "retry": {"max_attempts": 1},
        }
        while True:
            try:
                return self._fleet.client.submit_job(document, key=f"chaos-{number}").id
            except errors.AgentinaError as error:
                if error.entry.exit is not errors.Exit.UNAVAILABLE:
                    raise


def wreak_havoc(fleet: fleets.Fleet, chance: random.Random, *, kills: int) -> None:
    """kill -9 one or both, let them be down for a moment or not at all, start them again; sometimes while starting."""
    done = 0
    while done < kills:
        victims = chance.choice([["default"], ["default"], ["control-plane"], ["default", "control-plane"]])
        for victim in victims:
            fleet.kill(victim)
            done += 1
        chance_pause(chance, longest=0.3)
        for victim in chance.sample(victims, len(victims)):
            start = fleet.start_control_plane if victim == "control-plane" else fleet.start_daemon
            start(wait=False)
        # Short pauses hit them while they start; long ones let work happen.
        chance_pause(chance, longest=chance.choice([0.1, 0.6, 1.6]))


def chance_pause(chance: random.Random, *, longest: float) -> None:
    threading.Event().wait(chance.uniform(0, longest))


@pytest.mark.slow
def test_nothing_is_lost_or_done_twice_under_kill_9(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    marks = tmp_path / "marks"
    with fleets.running(tmp_path) as fleet:
        fleet.install("default", "--max-concurrent-tasks", "8")
        fleet.start_daemon()
        long_job = fleet.submit(["/bin/sleep", "100000"], name="long", resources={"memory": "16MiB"})
        long_pid = fleet.wait_state(long_job, State.RUNNING).tasks[0].pid
        assert long_pid
        submitter = Submitter(fleet, marks, chance)
        submitter.start()
        wreak_havoc(fleet, chance, kills=KILLS)
        fleets.wait_for(fleet.is_ready, "the control plane is back")
        submitter.join(deadlines.HANG)
        assert submitter.failure is None, submitter.failure
        assert len(submitter.jobs) == JOBS

        assert fleets.is_alive(long_pid), "the long task did not survive"
        assert fleet.job(long_job).tasks[0].pid == long_pid
        assert fleet.job(long_job).job.state is State.RUNNING
        problems = [text for number, job in submitter.jobs.items() for text in check_job(fleet, number, job)]
        assert not problems, "\n".join(problems)
        lines = collections.Counter(marks.read_text().split())
        assert lines == {str(number): 1 for number in range(JOBS)}

        fleet.client.cancel_job(long_job)
        assert fleet.wait_final(long_job).job.state is State.CANCELED
        fleets.wait_for(lambda: not fleets.is_alive(long_pid), "the canceled task's process ends")


def check_job(fleet: fleets.Fleet, number: int, job_id: str) -> list[str]:
    """What is wrong with an ended job; empty when nothing is."""
    view = fleet.wait_final(job_id)
    wrong = []
    if view.job.state is not State.SUCCEEDED:
        wrong.append(f"job {number} {job_id}: {view.job.state.value} / {view.job.reason.value}: {view.job.detail}")
    ran = [task for task in view.tasks if task.outcome is not None and task.outcome.state is State.SUCCEEDED]
    if len(ran) != 1:
        wrong.append(f"job {number} {job_id}: {len(ran)} successful tasks of {len(view.tasks)}")
        return wrong
    output = fleet.client.get_output(job_id, task=ran[0].id, offset=0, wait=0).data
    if output != expected_output(number):
        wrong.append(f"job {number} {job_id}: {len(output)} bytes of output; expected {len(expected_output(number))}")
    finals = [event for event in view.events if event.state is State.SUCCEEDED]
    if len(finals) != 1:
        wrong.append(f"job {number} {job_id}: {len(finals)} events say that it succeeded")
    return wrong
