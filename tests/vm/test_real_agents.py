"""The real command lines of AI agents in slots, from the host's own copies: no network but by its gateway.

Where pip, npm or somebody's variables bring them (tests/fakes/real_clis.py); the model is ours, beside the host.
``AGENTINA_VM_AGENTS=20``: so many at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from agentina.protocol import states
from agentina.protocol.states import Reason, State
from tests.fakes import coding_model, real_clis
from tests.vm import coding, container, host, images, lab, models

#: Models by the runners that do not choose one that the gateway serves.
MODELS: Final = {"gemini": "gemini-2.5-flash", "opencode": "anthropic/claude-haiku-4-5"}
#: They take 150 to 600 MB each.
AT_ONCE: Final = int(os.environ.get("AGENTINA_VM_AGENTS", "0"))
FIRST: Final = ("claude-code", "codex")


@pytest.fixture(scope="module")
def provider(run_lab: lab.Lab) -> Iterator[coding_model.CodingModel]:
    made = coding_model.CodingModel(coding.FIX)
    with models.running(made, run_lab):
        yield made


@pytest.fixture(autouse=True)
def as_new(provider: coding_model.CodingModel) -> None:
    coding.begin_anew(provider)


@pytest.fixture(scope="module")
def there(
    new_container: Callable[..., container.Container], run_lab: lab.Lab, provider: coding_model.CodingModel
) -> container.Container:
    made = new_container("agents")
    run_lab.activate(made, "default", "--max-concurrent-tasks 20")
    made.run(coding.REPOSITORY)
    made.run("echo 'disk_reserve: 1000000\nagent_linger: 1' >> /etc/agentina/default.yaml")
    models.give(made, provider.port)
    run_lab.wait_online(made)
    return made


@pytest.fixture(scope="module")
def copies(there: container.Container) -> Callable[[str], str]:
    """Have the host keep a copy of a runner's program, once; the copy's name and version."""
    made: dict[str, str] = {}

    def copy(runner: str) -> str:
        if runner not in made:
            made[runner] = put(there, runner)
        return made[runner]

    return copy


def put(there: container.Container, runner: str) -> str:
    program = real_program(runner)
    if program.suffix == ".js":
        node = shutil.which("node")
        if node is None:
            pytest.skip("node is not installed")
        there.put(Path(node).resolve(), "/usr/local/bin/node", mode=0o755)
    there.put(program.parent, "/root/program")
    there.run(f"agentina runner install {runner} --from /root/program --program {program.name}; rm -r /root/program")
    return there.run(f"agentina runner list | grep -o '^{runner}@[^ ]*'").strip()


def real_program(runner: str) -> Path:
    """The real command line."""
    cli = real_clis.CLIS[runner]
    found = real_clis.installed(cli)
    if found is not None:
        return found
    final = images.cache() / cli.distribution.replace("/", "+")
    with images.locked(images.cache() / f"{final.name}.lock"):
        if not final.exists():
            try:
                with images.staged(final) as directory:
                    real_clis.fetch(cli, directory)
            except OSError as error:
                pytest.skip(f"{error}; {cli.variable} can name the program")
    return final / cli.package / cli.path


def fields(runner: str, **more: Any) -> dict[str, Any]:
    payload = {"prompt": "test_calc.py fails. Fix calc.py.", **({"model": MODELS[runner]} if runner in MODELS else {})}
    return {"payload": payload, "resources": {"memory": "2GiB"}, **more}


@pytest.mark.parametrize("runner", real_clis.CLIS)
def test_agent_fixes_a_bug(  # noqa: PLR0917 - fixtures
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    copies: Callable[[str], str],
    tmp_path: Path,
    measured: Callable[[str], None],
    runner: str,
) -> None:
    name = copies(runner)
    # It asks for this very version; the copy is root's, and no task changes it.
    place = there.run(f"readlink -f /opt/agentina/runners/{runner}/default").strip()
    provider.command = f"{coding.FIX}; touch {place}/x; rm {place}/copy.json"
    view, output = coding.fix(run_lab, provider, name, tmp_path, **fields(runner))
    assert "AGENTINA_JOB_ID=" in output
    assert output.count("Read-only file system") >= 2
    outcome = view.tasks[0].outcome
    assert outcome is not None
    assert outcome.agent is not None
    version = name.partition("@")[2]
    assert (outcome.agent.version, outcome.agent.program.partition(" ")[0]) == (version, name)
    assert outcome.agent.program in there.run("agentina status")
    measured(f"a real {name} in a slot: {provider.billed} tokens billed, and as many counted")


@pytest.mark.parametrize("runner", FIRST)
def test_agent_uses_its_tools(  # noqa: PLR0917 - fixtures
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    copies: Callable[[str], str],
    runner: str,
) -> None:
    """The model has our server's tools used; what the agent says reaches the operators, and their answer the model."""
    provider.command = ""
    provider.verbs = [
        ("progress", {"text": "half way", "percent": 50}),
        ("complain", {"kind": "missing-secret", "text": "nobody gave me one", "about": f"{runner} token"}),
        # A question of its own: one that was answered already would be answered at once.
        ("ask", {"text": f"which branch does {runner} take?", "wait": 50}),
    ]
    assert copies(runner)
    assert there.is_on
    job = coding.submit(run_lab, runner, **fields(runner))

    def asked() -> dict[str, Any] | None:
        view = run_lab.fleet.job(job)
        assert view.job.state not in states.FINAL, (view.job, run_lab.fleet.output(job), provider.faults)
        return reported(run_lab, job, "TASK_QUESTION")

    question = host.wait_for(asked, "the question is here")
    complaint = reported(run_lab, job, "COMPLAINT_MISSING_SECRET")
    assert complaint is not None
    assert f"{runner} token" in str(complaint)
    assert run_lab.fleet.job(job).job.state is State.RUNNING
    run_lab.fleet.answer("anomaly", "answer", question["id"], "the second branch")
    view = run_lab.fleet.wait_final(job)
    output = run_lab.fleet.output(job).decode()
    assert (view.job.state, view.job.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), (view.job, output)
    assert b"the second branch" in provider.asked[-1].body
    task = view.tasks[0]
    assert task.progress is not None
    assert (task.progress.text, task.progress.percent) == ("half way", 50)
    assert task.outcome is not None
    assert task.outcome.agent is not None
    assert task.outcome.agent.tool_calls == len(provider.verbs)


def reported(run_lab: lab.Lab, job: str, code: str) -> dict[str, Any] | None:
    listed = run_lab.fleet.document("anomaly", "list", "--job", job)["anomalies"]
    return next((one for one in listed if one["code"] == code), None)


@pytest.mark.parametrize("runner", FIRST)
def test_agent_is_killed_in_the_middle_of_an_answer(  # noqa: PLR0917 - fixtures
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    copies: Callable[[str], str],
    runner: str,
) -> None:
    """What was completed is counted exactly, what broke off by an upper estimate."""
    copies(runner)
    job = coding.hold(run_lab, provider, 2, runner, **fields(runner))
    exact = list(provider.billed)
    there.run(f"pkill -KILL -f '^/opt/agentina/runners/{runner}/'")
    view = run_lab.fleet.wait_final(job)
    provider.let_go()
    assert view.job.reason is Reason.KILLED_BY_SIGNAL, (view.job, run_lab.fleet.output(job))
    ends = [entry for entry in coding.recorded(there, view.tasks[0].id) if entry["kind"] == "end"]
    assert [end["end"] for end in ends] == ["completed", "abandoned"]
    assert list(ends[0]["charge"]["used"].values()) == exact
    assert ends[1]["charge"]["estimated"]
    outcome = view.tasks[0].outcome
    assert outcome is not None
    (counted,) = outcome.models
    assert counted.calls == 2
    assert counted.input + counted.cached + counted.output >= sum(exact) + len(provider.asked[1].body) // 4


@pytest.mark.parametrize("end", ["a kill of the daemon", "a kill of the gateway"])
@pytest.mark.parametrize("runner", FIRST)
def test_agent_goes_on_over(  # noqa: PLR0917 - fixtures
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    copies: Callable[[str], str],
    runner: str,
    end: str,
) -> None:
    copies(runner)
    view = coding.break_off(end, there, run_lab, provider, 2, runner, **fields(runner))
    coding.check_goes_on(view, there, run_lab, provider)


@pytest.mark.parametrize("runner", FIRST)
def test_agent_does_not_overrun_its_budget_over_a_kill(  # noqa: PLR0917 - fixtures
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    copies: Callable[[str], str],
    runner: str,
) -> None:
    """There is room for two calls at their most; the provider may have billed all of the one that broke off."""
    copies(runner)
    most = 55_000
    wishes = fields(runner, budget={"tokens": most})
    view = coding.break_off("a kill of the daemon", there, run_lab, provider, 2, runner, **wishes)
    assert view.job.reason is Reason.AGENT_FAILED, (view.job, run_lab.fleet.output(view.job.id))
    assert f"{most} of {most} tokens are used" in view.job.detail
    assert len(provider.asked) == 2
    outcome = view.tasks[0].outcome
    assert outcome is not None
    assert sum(used.input + used.output for used in outcome.models) == most


@pytest.mark.parametrize("runner", FIRST)
def test_agent_that_stays_after_its_result_keeps_it(  # noqa: PLR0917 - fixtures
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    copies: Callable[[str], str],
    tmp_path: Path,
    runner: str,
) -> None:
    """It is ended; patch and verification are as if it had ended by itself."""
    name = copies(runner)
    real = there.run("agentina runner list --json").split(f'"name": "{name}"')[1].split('"program": "')[1].split('"')[0]
    stays = f'#!/bin/sh\nif [ "$1" = --version ]; then echo 99.1; exit; fi\n{real} "$@"\nexec sleep 100000\n'
    there.put(stays.encode(), "/root/stays")
    there.run(f"agentina runner install {runner} --from /root/stays --no-default")
    view, _ = coding.fix(run_lab, provider, f"{runner}@99.1", tmp_path, **fields(runner))
    assert reported(run_lab, view.job.id, "RUN_HUNG") is not None


@pytest.mark.skipif(not AT_ONCE, reason="AGENTINA_VM_AGENTS says how many")
def test_many_at_once(  # noqa: PLR0917 - fixtures
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    copies: Callable[[str], str],
    measured: Callable[[str], None],
) -> None:
    """Both kinds wait for the model at the same time; each is counted to the token, and the gateway stays small."""
    for runner in FIRST:
        copies(runner)
    before = coding.at_once(there, run_lab, provider, [{"runner": runner, **fields(runner)} for runner in FIRST])
    coding.begin_anew(provider)
    jobs = [{"runner": FIRST[number % 2], "resources": {"memory": "512MiB", "cpu": 0.1}} for number in range(AT_ONCE)]
    found = coding.at_once(there, run_lab, provider, jobs)
    measured(
        f"{AT_ONCE} real agents at once: {found.tasks:.0f} MiB all together; the gateway {found.gateway:.0f} MiB,"
        f" {before.gateway:.0f} MiB with two"
    )
