"""The real command lines of AI agents under the executor ``process``, when what serves them is killed in mid-answer.

Control plane, daemon, its gateway and the command lines are processes of their own, killed for good and all (SIGKILL);
the model is ours, and holds its answer until they are dead. ``AGENTINA_TEST_AGENTS=20``: so many agents at once.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from agentina.executors import process
from agentina.gateway import budgets, record, usage
from agentina.protocol import api
from agentina.protocol import budgets as protocol_budgets
from agentina.protocol.states import Reason, State
from tests.acceptance import fleet as fleets
from tests.fakes import coding_model, model_provider, procfs, real_clis
from tests.integration.gateway import beds

#: What is downloaded is large.
pytestmark = pytest.mark.slow

AT_ONCE: Final = int(os.environ.get("AGENTINA_TEST_AGENTS", "0"))
RUNNERS: Final = ("claude-code", "codex")
#: Who is killed in the middle of an agent's answer, while the agent itself goes on.
ENDS: Final = ("daemon", "gateway", "daemon and gateway")
FIX: Final = "sed -i 's/a - b/a + b/' calc.py; echo ran >> ran"


@dataclasses.dataclass(frozen=True)
class Crowd:
    """What many agents at once took, in MiB, in the middle of their answers."""

    gateway: int
    #: By runner, one of them with all that it started: what it shares with nobody, and its part of the rest.
    agents: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Bench:
    """An agent with a gateway, the model behind that, and a repository with a bug in it."""

    fleet: fleets.Fleet
    provider: coding_model.CodingModel
    repository: Path

    def begin_anew(self) -> None:
        """Let the model have the bug fixed, and forget what it was asked."""
        self.provider.command, self.provider.held_from = FIX, 0
        self.provider.billed = [0, 0, 0]
        self.provider.asked.clear()
        self.provider.holding.clear()
        self.provider.go_on.clear()

    def submit(self, runner: str, **fields: Any) -> str:
        """Submit a job that fixes the bug; its id."""
        job = {
            "name": "fix", "runner": runner, "payload": {"prompt": "test_calc.py fails. Fix calc.py."},
            "workspace": {"git": str(self.repository)}, "verify": {"argv": ["python3", "test_calc.py"]},
            "resources": {"memory": "2GiB"}, "budget": {"tokens": 1_000_000}, "retry": {"backoff": 0}, **fields,
        }  # fmt: skip
        return self.fleet.client.submit_job(job).id

    def hold(self, runner: str, **fields: Any) -> str:
        """Submit a job; returns when its agent has the beginning of its second answer, and has used its tool."""
        self.provider.held_from = 2
        job = self.submit(runner, **fields)
        fleets.wait_for(self.provider.holding.is_set, f"the model answers {runner}, and does not go on")
        return job

    def directory(self, job: str) -> Path:
        """Where the job's first task is."""
        return self.fleet.layout.instance("default").tasks / f"{job}.1"

    def reserved(self, job: str) -> budgets.Charge:
        """What the gateway holds for the one call that is under way."""
        story = record.read(self.directory(job))
        assert story is not None
        (asked,) = story.open.values()
        return asked.reserved

    def break_off(self, end: str) -> None:
        """Kill who serves an agent whose answer is held, let the model go on, and see to it that there is a daemon."""
        (gateway,) = procfs.gateways(self.fleet.root)
        if "gateway" in end:
            os.kill(gateway, signal.SIGSTOP)  # it does not hear of the daemon's end
        if "daemon" in end:
            self.fleet.kill("default")
        if "gateway" in end:
            os.kill(gateway, signal.SIGKILL)
        fleets.wait_for(lambda: not fleets.is_alive(gateway), "the gateway has ended")
        self.provider.let_go()
        if "daemon" in end:
            self.fleet.start_daemon()

    def ended(self, job: str, reason: Reason = Reason.AGENT_FINISHED) -> api.JobView:
        """A job that has ended, for this reason."""
        view = self.fleet.wait_final(job)
        assert view.job.reason is reason, (view.job, self.fleet.output(job)[-4000:], self.provider.faults)
        return view

    def at_once(self, number: int) -> Crowd:
        """Have so many agents wait for the model at the same time, and then go on; each is counted to the token."""
        self.begin_anew()
        self.provider.held_from = 1
        jobs = [self.submit(RUNNERS[one % 2], resources={"memory": "768MiB"}) for one in range(number)]
        patience = 10 * fleets.PATIENCE
        fleets.wait_for(lambda: all(map(self.is_asking, jobs)), "all of them ask the model", seconds=patience)
        (gateway,) = procfs.gateways(self.fleet.root)
        found = Crowd(
            gateway=round(procfs.memory_mib(gateway)),
            agents={
                runner: round(sum(map(_memory_of, jobs[one::2])) / len(jobs[one::2]))
                for one, runner in enumerate(RUNNERS)
            },
        )
        self.provider.held_from = 0
        self.provider.let_go()
        views = [self.fleet.wait_final(job, seconds=patience) for job in jobs]
        assert {view.job.reason for view in views} == {Reason.AGENT_FINISHED}
        for job in jobs:
            self.check_fixed_once(job)
        total = protocol_budgets.add(
            row for view in views for task in view.tasks if task.outcome is not None for row in task.outcome.models
        )
        assert (total.calls, total.estimated) == (len(self.provider.asked), 0)
        assert [total.input, total.cached, total.output] == self.provider.billed
        return found

    def is_asking(self, job: str) -> bool:
        """Whether the job's agent waits for the model."""
        story = record.read(self.directory(job))
        return story is not None and bool(story.open)

    def check_fixed_once(self, job: str) -> None:
        """What the agent did is there, and was done once."""
        pieces: list[bytes] = []
        self.fleet.client.read_artifact(job, "changes.patch", pieces.append)
        patch = b"".join(pieces)
        assert b"\n+    return a + b\n" in patch
        assert patch.count(b"\n+ran\n") == 1

    def charged(self, view: api.JobView) -> usage.Usage:
        """What counts for the second call of a job, which broke off; all others are counted as they were billed."""
        rows = [row for task in view.tasks if task.outcome is not None for row in task.outcome.models]
        total = protocol_budgets.add(rows)
        assert (total.calls, total.estimated) == (len(self.provider.asked), 1)
        listed = self.fleet.document("report", "usage", "--by", "job", "--json")["rows"]
        (row,) = [row for row in listed if row["key"] == view.job.id]
        assert [row.get(name, 0) for name in protocol_budgets.FIGURES] == [
            getattr(total, name) for name in protocol_budgets.FIGURES
        ]
        whole = [asked for number, asked in enumerate(self.provider.asked) if number != 1]
        billed = sum(map(self.provider.bill, whole), usage.Usage())
        return usage.Usage(
            input=total.input - billed.input, cached=total.cached - billed.cached, output=total.output - billed.output
        )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A control plane, and a host that has the programs; no daemon runs."""
    repository = tmp_path_factory.mktemp("repository")
    (repository / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    (repository / "test_calc.py").write_text("import calc; assert calc.add(2, 3) == 5\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments], cwd=repository, check=True
        )  # fmt: skip
    provider = coding_model.CodingModel(FIX)
    root = tmp_path_factory.mktemp("real")
    with model_provider.in_thread(provider), fleets.running(root, heartbeat_seconds=1.0) as fleet:
        fleet.install("default", "--max-concurrent-tasks", str(max(AT_ONCE, 2)))
        fleet.add_gateway("default", provider.url)
        for runner in RUNNERS:
            beds.describe(root, runner, real_clis.obtain(real_clis.CLIS[runner]))
        yield Bench(fleet, provider, repository)


@pytest.fixture
def bench(host: Bench) -> Iterator[Bench]:
    host.begin_anew()
    host.fleet.start_daemon()
    yield host
    host.provider.let_go()
    host.fleet.stop("default")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("runner", RUNNERS)
def test_agent_goes_on_over_the_end_of(bench: Bench, runner: str, end: str) -> None:
    """It asks again; what broke off counts as much as it could have cost."""
    job = bench.hold(runner)
    reserved = bench.reserved(job).used
    bench.break_off(end)
    view = bench.ended(job)
    assert len(view.tasks) == 1
    assert bench.charged(view) == reserved
    bench.check_fixed_once(job)


@pytest.mark.parametrize("runner", RUNNERS)
def test_budget_is_not_overrun(bench: Bench, runner: str) -> None:
    """There is room for two calls at their most, and the provider may have billed all of the one that broke off."""
    most = 55_000
    job = bench.hold(runner, budget={"tokens": most})
    bench.break_off("daemon and gateway")
    view = bench.ended(job, Reason.AGENT_FAILED)
    assert f"{most} of {most} tokens are used" in view.job.detail
    assert len(bench.provider.asked) == 2


@pytest.mark.parametrize("runner", RUNNERS)
def test_agent_that_is_killed_goes_on_where_it_was(bench: Bench, runner: str) -> None:
    """In its session: it has its tool's result, and what it asked last is asked again."""
    job = bench.hold(runner)
    reserved = bench.reserved(job).used
    bench.provider.command, bench.provider.held_from = "", 0
    os.kill(process.read_fence(bench.directory(job)).main_pid, signal.SIGKILL)
    view = bench.ended(job)
    assert [(task.state, task.reason) for task in view.tasks] == [
        (State.LOST, Reason.KILLED_BY_SIGNAL), (State.SUCCEEDED, Reason.AGENT_FINISHED),
    ]  # fmt: skip
    first, second = (task.outcome for task in view.tasks)
    assert first is not None
    assert second is not None
    assert first.agent is not None
    assert second.agent is not None
    assert first.agent.session_id == second.agent.session_id != ""
    resumed = bench.provider.asked[2].body
    assert b"You were interrupted" in resumed
    assert b"test_calc.py fails. Fix calc.py." in resumed
    # The gateway saw the beginning of the answer that broke off: what is known of it counts, and never less.
    charged, billed = bench.charged(view), bench.provider.bill(bench.provider.asked[1])
    assert billed.input + billed.cached <= charged.input + charged.cached <= reserved.input
    assert 0 < charged.output <= reserved.output
    bench.check_fixed_once(job)


@pytest.mark.skipif(not AT_ONCE, reason="AGENTINA_TEST_AGENTS says how many")
def test_many_at_once(bench: Bench, measured: Callable[[str], None]) -> None:
    """They do what each alone does, and the gateway's memory does not grow with what they do."""
    alone = bench.at_once(2)
    rounds = [bench.at_once(AT_ONCE) for _ in range(3)]
    measured(
        f"{AT_ONCE} real agents at once: {rounds[-1].agents} MiB each ({alone.agents} with one of each); "
        f"the gateway {[found.gateway for found in rounds]} MiB in turn, {alone.gateway} MiB with two"
    )
    assert rounds[0].gateway < alone.gateway + 2 * AT_ONCE
    assert rounds[2].gateway <= rounds[1].gateway + 2


def _memory_of(job: str) -> float:
    """MiB of all processes of a job."""
    mark = f"AGENTINA_JOB_ID={job}\0".encode()
    return sum(procfs.share_mib(pid) for pid, variables in procfs.environments().items() if mark in variables)
