"""The real command lines of AI agents, in slots, whose hosts go in the middle of an answer: they go on on another."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from agentina.protocol import api
from agentina.protocol.states import State
from tests.fakes import coding_model
from tests.vm import cloud, coding, container, host, lab, models, programs

LAB: Final = lab.IMPATIENT
#: Where each keeps its sessions, which can be moved.
SESSIONS: Final = {"claude-code": ".claude/projects", "codex": ".codex/sessions"}
#: Seconds that Google gives notice.
NOTICE: Final = 30.0


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Two hosts, of which the first has the work."""

    bench: coding.Bench
    first: container.Container
    second: container.Container
    #: Announces that the first is about to go, or takes that back.
    preempt: Callable[..., None]

    @contextlib.contextmanager
    def only_first(self) -> Iterator[None]:
        """Meanwhile the other takes no work."""
        self.second.run("agentina drain")
        # Until the control plane has heard of it, the poll that waits there may still be given a job.
        client, name = self.bench.lab.fleet.client, self.second.name
        host.wait_for(
            lambda: any(one.draining_by_host for one in client.list_agents().agents if one.hostname == name),
            "the control plane knows that the second takes no work",
        )
        yield
        self.second.run("agentina resume")

    def begin(self) -> list[str]:
        """Have an agent of each kind begin on the first; returns when all are in the middle of their second answer."""
        self.bench.begin_anew()
        self.bench.provider.command = f"{coding.FIX}; echo ran >> ran; echo marked-$AGENTINA_TASK_ID"
        with self.only_first():
            jobs = [self._begin(runner) for runner in SESSIONS]
        # What goes on is asked to do nothing more.
        self.bench.provider.command = ""
        return jobs

    def _begin(self, runner: str) -> str:
        verify = {"script": 'python3 test_calc.py && test "$(cat ran)" = ran'}
        wishes = {"checkpoint": {"every": 0}, "retry": {"max_attempts": 2, "backoff": 0}, "verify": verify}
        job = self.bench.hold(2, **programs.job(runner, **wishes))
        # A command line writes its session down beside its work.
        files = f"/var/lib/agentina/.slots/*/task/home/{SESSIONS[runner]}"
        self.first.wait(f"grep -rqs marked-{job}.1 {files}", f"{runner} has it in its session")
        return job

    def wait(self, job: str, condition: Callable[[api.JobView], bool], what: str) -> None:
        """Wait until something is true of a job."""
        host.wait_for(lambda: condition(self.bench.lab.fleet.job(job)), f"{what}: {job}")

    def check(self, job: str, ended: State) -> None:
        """After ``ended`` it ended well on the other host: with its files and its session, and did nothing twice."""
        view, _ = self.bench.ended(job)
        before, after = view.tasks
        assert (before.state, after.state) == (ended, State.SUCCEEDED)
        assert before.agent_id != after.agent_id
        assert f"goes on from checkpoint-000001.tar of {job}.1" in coding.notes(view)
        # The model sees what was said before; and what the second task used is what the provider billed for that.
        words = (b"You were interrupted", b"test_calc.py fails", f"marked-{job}.1".encode())
        bodies = [asked.body for asked in self.bench.provider.asked if all(word in asked.body for word in words)]
        assert after.outcome is not None
        (used,) = after.outcome.models
        assert used.calls == len(bodies) > 0
        assert used.input + used.cached == sum(len(body) // 4 for body in bodies)
        assert b"+    return a + b" in self.bench.patch_of(job)


@pytest.fixture(scope="module")
def hosts(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> Iterator[Hosts]:
    provider = coding_model.CodingModel("")
    with models.running(provider, run_lab), cloud.google() as (address, preempt):
        first, second = (new_container(name) for name in ("first", "second"))
        bench = coding.join(first, run_lab, provider, f"cloud: gce\ncloud_metadata: {address}")
        coding.join(second, run_lab, provider)
        for copies in (programs.Copies(first), programs.Copies(second)):
            for runner in SESSIONS:
                copies.name(runner)
        yield Hosts(bench, first, second, preempt)


def test_host_is_about_to_go(hosts: Hosts, measured: Callable[[str], None]) -> None:
    """What can go on elsewhere has left within the notice's time, also what does not end when it is asked to."""
    jobs = hosts.begin()
    with hosts.only_first():
        stubborn = hosts.bench.lab.fleet.submit_script(
            "trap '' TERM; echo begun >> begun; while :; do sleep 1; done", checkpoint={"every": 0}
        )
        hosts.first.wait("ls /var/lib/agentina/.slots/*/task/workspace/begun", "it has begun")
    announced = time.monotonic()
    hosts.preempt(announced=True)
    for job in (*jobs, stubborn):
        hosts.wait(job, lambda view: view.tasks[0].state is State.CHECKPOINTED, "it leaves")
    took = time.monotonic() - announced
    assert took < NOTICE
    hosts.bench.provider.let_go()
    for job in jobs:
        hosts.check(job, State.CHECKPOINTED)
    hosts.second.wait("grep -c begun /var/lib/agentina/.slots/*/task/workspace/begun | grep -x 2", "it goes on")
    hosts.bench.lab.fleet.client.cancel_job(stubborn)
    hosts.bench.lab.fleet.wait_final(stubborn)
    hosts.preempt(announced=False)
    hosts.bench.lab.wait_online(hosts.first)
    measured(f"two real agents, and one that had to be killed, left a host {took:.0f} s after its notice")


def test_host_is_cut_off(hosts: Hosts) -> None:
    """It ends its tasks before the other has them; when it is back it tells what they used, and runs nothing."""
    jobs = hosts.begin()
    for job in jobs:
        hosts.bench.lab.fleet.answer("job", "checkpoint", job)
    for job in jobs:
        hosts.wait(job, lambda view: "checkpoint-000001.tar is stored" in coding.notes(view), "a checkpoint is stored")
    hosts.first.set_network(up=False)
    for job in jobs:
        hosts.wait(job, lambda view: len(view.tasks) == 2, "the other has it")
    assert hosts.bench.lab.units(hosts.first) == {}
    hosts.bench.provider.let_go()
    for job in jobs:
        hosts.check(job, State.LOST)
    asked = len(hosts.bench.provider.asked)
    hosts.first.set_network(up=True)
    hosts.bench.lab.wait_online(hosts.first)
    for job in jobs:
        # The answer that broke off is charged at its most.
        hosts.wait(job, lambda view: view.tasks[0].outcome is not None, "it is told what the first used")
        before, after = hosts.bench.lab.fleet.job(job).tasks
        assert (before.state, after.state) == (State.LOST, State.SUCCEEDED)
        assert before.outcome is not None
        assert [(used.calls, used.estimated) for used in before.outcome.models] == [(2, 1)]
    assert len(hosts.bench.provider.asked) == asked
