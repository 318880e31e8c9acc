"""A repository with a bug in a host that has a gateway, agents that fix it, and what has to be true of that."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any, Final

from agentina.gateway import record
from agentina.protocol import api
from agentina.protocol.states import Reason, State
from tests.fakes import coding_model
from tests.vm import container, host, lab, models

REPOSITORY: Final = """
mkdir -p /srv/repository && cd /srv/repository && git init -q -b main
printf 'def add(a, b):\\n    return a - b\\n' > calc.py
printf 'import calc; assert calc.add(2, 3) == 5\\n' > test_calc.py
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


def begin_anew(provider: coding_model.CodingModel) -> None:
    """Forget what was asked and billed, and hold no answer."""
    provider.command, provider.verbs, provider.scenario, provider.held_from = FIX, [], "text", 0
    provider.billed = [0, 0, 0]
    provider.asked.clear()


def submit(run_lab: lab.Lab, runner: str = "claude-code", **fields: Any) -> str:
    job = {
        "name": "fix", "runner": runner, "payload": {"prompt": "test_calc.py fails. Fix calc.py."},
        "workspace": {"git": "/srv/repository"}, "resources": {"memory": "1GiB", "cpu": 0.1},
        "budget": {"tokens": 1_000_000}, **fields,
    }  # fmt: skip
    return run_lab.fleet.client.submit_job(job).id


def fix(
    run_lab: lab.Lab, provider: coding_model.CodingModel, runner: str, tmp_path: Path, **fields: Any
) -> tuple[api.JobView, str]:
    """Have an agent fix the bug; everything of it is as it has to be. Returns the job, and its output."""
    job = submit(run_lab, runner, verify={"argv": ["python3", "test_calc.py"]}, **fields)
    view = run_lab.fleet.wait_final(job)
    output = run_lab.fleet.output(job).decode()
    assert (view.job.state, view.job.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), (view.job, output)
    (tmp_path / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    (tmp_path / "test_calc.py").write_text("import calc; assert calc.add(2, 3) == 5\n")
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch_of(run_lab, job), check=True)
    subprocess.run(["python3", "test_calc.py"], cwd=tmp_path, check=True)
    # What the gateway counted, and what the command line says, is what the provider billed.
    fresh, cached, used = provider.billed
    assert f"{fresh + cached + used} tokens, {cached} of them cached" in notes(view)
    outcome = view.tasks[0].outcome
    assert outcome is not None
    assert outcome.agent is not None
    assert outcome.agent.tokens is not None
    tokens = outcome.agent.tokens
    assert [tokens.input, tokens.cached_input, tokens.output] == provider.billed
    for asked in provider.asked:
        sent = [asked.headers.get(name, "") for name in ("x-api-key", "authorization", "x-goog-api-key")]
        assert models.KEYS[asked.api] in " ".join(sent)
    assert not [key for key in models.KEYS.values() if key in output]
    return view, output


def hold(run_lab: lab.Lab, provider: coding_model.CodingModel, number: int, runner: str, **fields: Any) -> str:
    """Submit a job; returns when its agent has the beginning of the answer to its request of this number."""
    provider.go_on.clear()
    provider.holding.clear()
    provider.held_from = len(provider.asked) + number
    job = submit(run_lab, runner, **fields)
    host.wait_for(provider.holding.is_set, f"the model answers {runner}, and does not go on")
    return job


def break_off(  # noqa: PLR0917 - what it is about
    end: str,
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    number: int,
    runner: str,
    **fields: Any,
) -> api.JobView:
    """Have something of :data:`ENDS` end in the middle of an agent's answer of this number; the job, when it is over.

    To be failed, so that it is kept, and its record can be read.
    """
    provider.command = f"{FIX}; echo ran >> ran"
    job = hold(run_lab, provider, number, runner, **{"verify": {"argv": ["false"]}, **fields})
    gateway = there.run(GATEWAY).strip()
    there.run(ENDS[end])
    there.wait(f"! test -d /proc/{gateway}", "the gateway has ended")
    provider.let_go()
    return run_lab.fleet.wait_final(job)


def check_goes_on(
    view: api.JobView, there: container.Container, run_lab: lab.Lab, provider: coding_model.CodingModel
) -> None:
    """After :func:`break_off` it asked again, and came to its end.

    What was completed is counted exactly, the call that broke off by its most, and no command was run twice.
    """
    assert view.job.reason is Reason.VERIFY_FAILED, (view.job, run_lab.fleet.output(view.job.id))
    (task,) = view.tasks
    charges = [(entry["end"], entry["charge"]) for entry in recorded(there, task.id) if entry["kind"] == "end"]
    (broken,) = [number for number, (end, _) in enumerate(charges) if end != "completed"]
    assert charges[broken][1]["estimated"]
    sizes = [len(asked.body) // 4 for asked in provider.asked]
    assert sum(charges[broken][1]["used"].values()) >= sizes.pop(broken)
    completed = [charge["used"] for end, charge in charges if end == "completed"]
    assert completed == [{"input": size - size // 2, "cached": size // 2, "output": provider.output} for size in sizes]
    counted = [sum(charge["used"].values()) for _, charge in charges]
    assert task.outcome is not None
    (told,) = task.outcome.models
    assert (told.calls, told.input + told.cached + told.output) == (len(counted), sum(counted))
    assert patch_of(run_lab, view.job.id).count(b"\n+ran\n") == 1


def patch_of(run_lab: lab.Lab, job: str) -> bytes:
    """What a job changed."""
    pieces: list[bytes] = []
    run_lab.fleet.client.read_artifact(job, "changes.patch", pieces.append)
    return b"".join(pieces)


@dataclasses.dataclass(frozen=True)
class Crowd:
    """What many agents at once took, in MiB."""

    #: The gateway's process, in the middle of all their answers.
    gateway: float
    #: All processes of all tasks: what each does not share with others, and its part of what it does (proc(5), Pss).
    tasks: float


def at_once(
    there: container.Container, run_lab: lab.Lab, provider: coding_model.CodingModel, jobs: list[dict[str, Any]]
) -> Crowd:
    """Have agents wait for the model at the same time, and then go on; each has to be counted to the token."""
    provider.go_on.clear()
    provider.scenario = "held"
    made = [submit(run_lab, **job) for job in jobs]
    host.wait_for(lambda: len(provider.asked) >= len(jobs), "all of them ask the model", seconds=10 * host.PATIENCE)
    assert len(run_lab.units(there)) == len(jobs)
    found = Crowd(gateway=_memory(there, f"$({GATEWAY})"), tasks=_memory(there, _TASKS))
    provider.scenario = "text"
    provider.let_go()
    views = [run_lab.fleet.wait_final(job, seconds=10 * host.PATIENCE) for job in made]
    assert {view.job.reason for view in views} == {Reason.AGENT_FINISHED}, [view.job for view in views]
    outcomes = [view.tasks[0].outcome for view in views]
    counted = [used for outcome in outcomes if outcome is not None for used in outcome.models]
    fresh, cached, output = provider.billed
    assert sum(used.calls for used in counted) == len(provider.asked)
    assert sum(used.input for used in counted) == fresh
    assert sum(used.cached for used in counted) == cached
    assert sum(used.output for used in counted) == output
    assert found.gateway < 100
    return found


def _memory(there: container.Container, processes: str) -> float:
    """MiB of processes, each shared page counted once."""
    files = f"for one in {processes}; do cat /proc/$one/smaps_rollup 2>/dev/null; done"
    return int(there.run(f"({files}) | awk '/^Pss:/ {{ all += $2 }} END {{ print all + 0 }}'")) / 1024


def notes(view: api.JobView) -> str:
    return "\n".join(event.text for event in view.events)


def recorded(there: container.Container, task: str) -> list[dict[str, Any]]:
    """What a task's record says."""
    log = there.get(f"{kept(there, task)}/{record.NAME}").decode()
    return [json.loads(line[9:]) for line in log.splitlines()]


def kept(there: container.Container, task: str) -> str:
    """Where everything of a failed task is kept; the daemon puts it there some time after the end."""
    place = f"/var/lib/agentina/default/tasks-kept/{task}"
    there.wait(f"test -d {place}", "what the task left is put away")
    return place
