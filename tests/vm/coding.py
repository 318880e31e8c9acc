"""A host with a gateway, a repository with a bug in it, agents that fix it, and what has to be true of that."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from agentina.gateway import record
from agentina.protocol import api, states, wire
from agentina.protocol.states import Reason, State
from tests.fakes import coding_model
from tests.vm import host, lab, models

_CALC: Final = "def add(a, b):\n    return a - b\n"
_TEST: Final = "import calc; assert calc.add(2, 3) == 5\n"
#: With the same commit on every host.
_REPOSITORY: Final = f"""
export GIT_AUTHOR_DATE=2026-01-01T00:00:00Z GIT_COMMITTER_DATE=2026-01-01T00:00:00Z
mkdir -p /srv/repository && cd /srv/repository && git init -q -b main
printf %s '{_CALC}' > calc.py
printf %s '{_TEST}' > test_calc.py
git add . && git -c user.name=a -c user.email=a@example.com commit -qm first && chown -R agentina .
"""
FIX: Final = (
    "sed -i 's/a - b/a + b/' calc.py && id -u && env && ls -A /var/lib/agentina/task && grep -o '[^ ]*:' /proc/net/dev"
)
#: Processes of the gateway there.
GATEWAY: Final = "pgrep -u agentina -f agentina.gateway.process"
#: What ends in the middle of an answer while the task itself does not.
ENDS: Final = {
    "a restart of the daemon": "systemctl restart agentina@default",
    "a kill of the daemon": "systemctl kill --kill-whom=main -s KILL agentina@default",
    "a kill of the gateway": f"kill -KILL $({GATEWAY})",
}
#: Processes of all tasks there.
_TASKS: Final = "$(cat $(find /sys/fs/cgroup -path '*agentina*tasks.slice*/cgroup.procs') | sort -u)"


@dataclasses.dataclass(frozen=True)
class Crowd:
    """What many agents at once took, in MiB."""

    #: The gateway's process, in the middle of all their answers.
    gateway: float
    #: All processes of all tasks: what each does not share with others, and its part of what it does (proc(5), Pss).
    tasks: float


@dataclasses.dataclass(frozen=True)
class Bench:
    """A host whose agents work, and the model that they ask."""

    there: host.Host
    lab: lab.Lab
    provider: coding_model.CodingModel

    def begin_anew(self) -> None:
        """Let the model have the bug fixed, and forget what it was asked."""
        self.provider.command, self.provider.verbs = FIX, []
        self.provider.scenario, self.provider.held_from = "text", 0
        self.provider.billed = [0, 0, 0]
        self.provider.asked.clear()
        self.provider.holding.clear()
        self.provider.go_on.clear()

    def submit(self, runner: str = "claude-code", **fields: Any) -> str:
        """Submit a job that fixes the bug; its id."""
        job = {
            "name": "fix", "runner": runner, "payload": {"prompt": "test_calc.py fails. Fix calc.py."},
            "workspace": {"git": "/srv/repository"}, "resources": {"memory": "1GiB", "cpu": 0.1},
            "budget": {"tokens": 1_000_000}, **fields,
        }  # fmt: skip
        return self.lab.fleet.client.submit_job(job).id

    def ended(
        self, job: str, reason: Reason = Reason.AGENT_FINISHED, *, seconds: float = host.PATIENCE
    ) -> tuple[api.JobView, str]:
        """A job that has ended, for this reason, and its output."""
        view = self.lab.fleet.wait_final(job, seconds=seconds)
        output = self.lab.fleet.output(job).decode()
        assert view.job.reason is reason, (view.job, output[-4000:], self.provider.faults)
        return view, output

    def fix(self, runner: str, **fields: Any) -> tuple[api.JobView, str]:
        """Have an agent fix the bug; everything of it is as it has to be. Returns the job, and its output."""
        view, output = self.ended(self.submit(runner, verify={"argv": ["python3", "test_calc.py"]}, **fields))
        assert view.job.state is State.SUCCEEDED
        with tempfile.TemporaryDirectory() as elsewhere:
            (Path(elsewhere) / "calc.py").write_text(_CALC)
            (Path(elsewhere) / "test_calc.py").write_text(_TEST)
            subprocess.run(["git", "apply", "-"], cwd=elsewhere, input=self.patch_of(view.job.id), check=True)
            subprocess.run(["python3", "test_calc.py"], cwd=elsewhere, check=True)
        # What the gateway counted, and what the command line says, is what the provider billed.
        fresh, cached, used = self.provider.billed
        assert f"{fresh + cached + used} tokens, {cached} of them cached" in notes(view)
        tokens = run_of(view).tokens
        assert tokens is not None
        assert [tokens.input, tokens.cached_input, tokens.output] == self.provider.billed
        for asked in self.provider.asked:
            sent = [asked.headers.get(name, "") for name in ("x-api-key", "authorization", "x-goog-api-key")]
            assert models.KEYS[asked.api] in " ".join(sent)
        assert not [key for key in models.KEYS.values() if key in output]
        return view, output

    def patch_of(self, job: str) -> bytes:
        """What a job changed."""
        pieces: list[bytes] = []
        self.lab.fleet.client.read_artifact(job, "changes.patch", pieces.append)
        return b"".join(pieces)

    def hold(self, number: int, runner: str, **fields: Any) -> str:
        """Submit a job; returns when its agent has the beginning of the answer to its request of this number."""
        self.provider.holding.clear()
        self.provider.held_from = len(self.provider.asked) + number
        job = self.submit(runner, **fields)
        host.wait_for(self.provider.holding.is_set, f"the model answers {runner}, and does not go on")
        return job

    def break_off(self, end: str, number: int, runner: str, **fields: Any) -> str:
        """Have something of :data:`ENDS` end in the middle of an agent's answer of this number, and the model go on.

        The job is to be failed, so that it is kept, and its record can be read.
        """
        self.provider.command = f"{FIX}; echo ran >> ran"
        job = self.hold(number, runner, **{"verify": {"argv": ["false"]}, **fields})
        gateway = self.there.run(GATEWAY).strip()
        self.there.run(ENDS[end])
        self.there.wait(f"! test -d /proc/{gateway}", "the gateway has ended")
        self.provider.let_go()
        return job

    def check_goes_on(self, job: str) -> None:
        """After :meth:`break_off` it asked again, and comes to its end.

        What was completed is counted exactly, the call that broke off by its most, and no command was run twice.
        """
        view, _ = self.ended(job, Reason.VERIFY_FAILED)
        (task,) = view.tasks
        charges = [(entry["end"], entry["charge"]) for entry in self.recorded(task.id) if entry["kind"] == "end"]
        (broken,) = [number for number, (end, _) in enumerate(charges) if end != "completed"]
        assert charges[broken][1]["estimated"]
        sizes = [len(asked.body) // 4 for asked in self.provider.asked]
        assert sum(charges[broken][1]["used"].values()) >= sizes.pop(broken)
        assert [charge["used"] for end, charge in charges if end == "completed"] == [
            {"input": size - size // 2, "cached": size // 2, "output": self.provider.output} for size in sizes
        ]
        counted = [sum(charge["used"].values()) for _, charge in charges]
        (told,) = outcome_of(view).models
        assert (told.calls, told.input + told.cached + told.output) == (len(counted), sum(counted))
        assert self.patch_of(job).count(b"\n+ran\n") == 1

    def at_once(self, jobs: list[dict[str, Any]]) -> Crowd:
        """Have agents wait for the model at the same time, and then go on; each has to be counted to the token."""
        self.begin_anew()
        self.provider.scenario = "held"
        made = [self.submit(**job) for job in jobs]
        patience = 10 * host.PATIENCE
        host.wait_for(lambda: len(self.provider.asked) >= len(jobs), "all of them ask the model", seconds=patience)
        assert len(self.lab.units(self.there)) == len(jobs)
        found = Crowd(gateway=self._memory(f"$({GATEWAY})"), tasks=self._memory(_TASKS))
        self.provider.scenario = "text"
        self.provider.let_go()
        outcomes = [outcome_of(self.ended(job, seconds=patience)[0]) for job in made]
        counted = [used for outcome in outcomes for used in outcome.models]
        fresh, cached, output = self.provider.billed
        assert sum(used.calls for used in counted) == len(self.provider.asked)
        assert sum(used.input for used in counted) == fresh
        assert sum(used.cached for used in counted) == cached
        assert sum(used.output for used in counted) == output
        assert found.gateway < 100
        return found

    def _memory(self, processes: str) -> float:
        """MiB of processes, each shared page counted once."""
        files = f"for one in {processes}; do cat /proc/$one/smaps_rollup 2>/dev/null; done"
        return int(self.there.run(f"({files}) | awk '/^Pss:/ {{ all += $2 }} END {{ print all + 0 }}'")) / 1024

    def reported(self, job: str, code: str) -> dict[str, Any] | None:
        """What operators are told of a job under this code, if they are."""
        listed = self.lab.fleet.document("anomaly", "list", "--job", job)["anomalies"]
        return next((one for one in listed if one["code"] == code), None)

    def wait_reported(self, job: str, code: str) -> dict[str, Any]:
        """Wait until operators are told this of a job, which has not ended yet."""

        def looked() -> dict[str, Any] | None:
            view = self.lab.fleet.job(job)
            assert view.job.state not in states.FINAL, (view.job, self.lab.fleet.output(job), self.provider.faults)
            return self.reported(job, code)

        return dict(host.wait_for(looked, f"{code} is reported"))

    def recorded(self, task: str) -> list[dict[str, Any]]:
        """What a task's record says."""
        log = self.there.get(f"{self.kept(task)}/{record.NAME}").decode()
        return [json.loads(line[9:]) for line in log.splitlines()]

    def kept(self, task: str) -> str:
        """Where everything of a failed task is kept; the daemon puts it there some time after the end."""
        place = f"/var/lib/agentina/default/tasks-kept/{task}"
        self.there.wait(f"test -d {place}", "what the task left is put away")
        return place


@contextlib.contextmanager
def on(there: host.Host, run_lab: lab.Lab) -> Iterator[Bench]:
    """One on a host that has the package, with room for twenty tasks."""
    provider = coding_model.CodingModel(FIX)
    with models.running(provider, run_lab):
        yield join(there, run_lab, provider)


def join(there: host.Host, run_lab: lab.Lab, provider: coding_model.CodingModel, settings: str = "") -> Bench:
    """One on a host that has the package, with a model that there is."""
    run_lab.activate(there, "default", "--max-concurrent-tasks 20")
    there.run(_REPOSITORY)
    # Its disk is small; what failed is to be kept whole all the same.
    there.run(f"echo 'disk_reserve: 1000000\nagent_linger: 1\n{settings}' >> /etc/agentina/default.yaml")
    models.give(there, provider.port)
    run_lab.wait_online(there)
    return Bench(there, run_lab, provider)


def notes(view: api.JobView) -> str:
    """Everything that a job's timeline says."""
    return "\n".join(event.text for event in view.events)


def outcome_of(view: api.JobView) -> wire.Outcome:
    """What came of the first task of a job that has ended."""
    outcome = view.tasks[0].outcome
    assert outcome is not None
    return outcome


def run_of(view: api.JobView) -> wire.AgentRun:
    """What the agent of the first task of a job said of its work."""
    run = outcome_of(view).agent
    assert run is not None
    return run
