"""Jobs in slots with a gateway: no network but by it, which has the keys; over restarts; real command lines.

The model is ours, beside the host. Stand-ins for the command lines of AI agents always run; the real ones where PyPI
has them, or somebody named them (tests/fakes/real_clis.py).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from agentina.gateway import record
from agentina.protocol import api
from agentina.protocol.states import Reason, State
from tests.fakes import coding_model, model_provider, real_clis
from tests.vm import container, host, images, lab, models

RUNNERS: Final = {"claude-code": "claude", "codex": "codex"}
REPOSITORY: Final = """
mkdir -p /srv/repository && cd /srv/repository && git init -q -b main
printf 'def add(a, b):\\n    return a - b\\n' > calc.py
printf 'import calc; assert calc.add(2, 3) == 5\\n' > test_calc.py
git add . && git -c user.name=a -c user.email=a@example.com commit -qm first && chown -R agentina .
"""
FIX: Final = (
    "sed -i 's/a - b/a + b/' calc.py && id -u && env && ls -A /var/lib/agentina/task && grep -o '[^ ]*:' /proc/net/dev"
)


@pytest.fixture(scope="module")
def provider(run_lab: lab.Lab) -> Iterator[coding_model.CodingModel]:
    made = coding_model.CodingModel(FIX)
    with models.running(made, run_lab):
        yield made


@pytest.fixture(autouse=True)
def as_new(provider: coding_model.CodingModel) -> None:
    provider.command, provider.scenario, provider.billed = FIX, "text", [0, 0, 0]
    provider.asked.clear()


@pytest.fixture(scope="module")
def there(
    new_container: Callable[..., container.Container], run_lab: lab.Lab, provider: model_provider.ModelProvider
) -> container.Container:
    made = new_container("gateway")
    run_lab.activate(made, "default", "--max-concurrent-tasks 20")
    made.run(REPOSITORY)
    for name in RUNNERS.values():
        made.put(Path(model_provider.__file__).with_name("stand_in_cli.py"), f"/usr/local/bin/{name}", mode=0o755)
    models.give(made, provider.port)
    run_lab.wait_online(made)
    return made


def submit(run_lab: lab.Lab, runner: str = "claude-code", **fields: Any) -> str:
    job = {
        "name": "fix", "runner": runner, "payload": {"prompt": "test_calc.py fails. Fix calc.py."},
        "workspace": {"git": "/srv/repository"}, "resources": {"memory": "1GiB", "cpu": 0.1},
        "budget": {"tokens": 1_000_000}, **fields,
    }  # fmt: skip
    return run_lab.fleet.client.submit_job(job).id


def fix(run_lab: lab.Lab, provider: coding_model.CodingModel, runner: str, tmp_path: Path, **fields: Any) -> str:
    """Have an agent fix the bug; everything of it is as it has to be. Returns its output."""
    job = submit(run_lab, runner, verify={"argv": ["python3", "test_calc.py"]}, **fields)
    view = run_lab.fleet.wait_final(job)
    output = run_lab.fleet.output(job).decode()
    assert (view.job.state, view.job.reason) == (State.SUCCEEDED, Reason.AGENT_FINISHED), (view.job, output)
    patch: list[bytes] = []
    run_lab.fleet.client.read_artifact(job, "changes.patch", patch.append)
    (tmp_path / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    (tmp_path / "test_calc.py").write_text("import calc; assert calc.add(2, 3) == 5\n")
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=b"".join(patch), check=True)
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
        key = models.KEYS["anthropic" if runner == "claude-code" else "openai"]
        assert key in asked.headers.get("x-api-key", asked.headers.get("authorization", ""))
    assert not [key for key in models.KEYS.values() if key in output]
    return output


def notes(view: api.JobView) -> str:
    return "\n".join(event.text for event in view.events)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("runner", RUNNERS)
def test_stand_in_fixes_a_bug(
    run_lab: lab.Lab, provider: coding_model.CodingModel, tmp_path: Path, runner: str
) -> None:
    output = fix(run_lab, provider, runner, tmp_path)
    # It is a user of its own, and has loopback, its own files, orders, and nothing else.
    assert "_default-S" in output
    assert '\\nhome\\nmirror\\norders\\nworkspace\\nlo:\\n"' in output


@pytest.mark.parametrize("runner", RUNNERS)
def test_real_agent_fixes_a_bug(  # noqa: PLR0917 - fixtures
    there: container.Container,
    run_lab: lab.Lab,
    provider: coding_model.CodingModel,
    tmp_path: Path,
    measured: Callable[[str], None],
    runner: str,
) -> None:
    program = real_program(runner)
    place = f"/opt/agents/{runner}"
    for path in sorted(program.parent.iterdir()):
        there.put(path, f"{place}/{path.name}", mode=0o755)
    there.run("mkdir -p /etc/agentina/runners.d")
    there.put(f"program: {place}/{program.name}\n".encode(), f"/etc/agentina/runners.d/{runner}.yaml")
    try:
        there.run("systemctl restart agentina@default")
        run_lab.wait_online(there)
        output = fix(run_lab, provider, runner, tmp_path, resources={"memory": "2GiB"})
    finally:
        there.run(f"rm -r {place} /etc/agentina/runners.d; systemctl restart agentina@default")
        run_lab.wait_online(there)
    assert "AGENTINA_JOB_ID=" in output
    measured(f"a real {program.name} in a slot: {provider.billed} tokens billed, and as many counted")


def real_program(runner: str) -> Path:
    """The real command line."""
    cli = real_clis.CLIS[runner]
    found = real_clis.installed(cli)
    if found is not None:
        return found
    final = images.cache() / cli.distribution
    with images.locked(images.cache() / f"{cli.package}.lock"):
        if not final.exists():
            try:
                with images.staged(final) as directory:
                    real_clis.fetch(cli, directory)
            except OSError as error:
                pytest.skip(f"{error}; {cli.variable} can name the program")
    return final / cli.package / cli.path


# --- while things are restarted --------------------------------------------------------------------------------------

#: Unit and process of what is ended in the middle of an answer.
GATEWAY: Final = "pgrep -u agentina -f agentina.gateway.process"
ENDS: Final = {
    "a restart of the daemon": "systemctl restart agentina@default",
    "a kill of the daemon": "systemctl kill --kill-whom=main -s KILL agentina@default",
    "a kill of the gateway": f"kill -KILL $({GATEWAY})",
}


@pytest.mark.parametrize("end", ENDS)
def test_task_goes_on_over(
    there: container.Container, run_lab: lab.Lab, provider: coding_model.CodingModel, end: str
) -> None:
    """The next call finds the way out again; what was completed is counted exactly, the broken one by its most."""
    provider.go_on.clear()
    provider.holding.clear()
    provider.scenario = "held"
    # What failed is kept, and so its record can be read.
    job = submit(run_lab, verify={"argv": ["false"]})
    host.wait_for(provider.holding.is_set, "the model answers")
    provider.scenario = "text"
    there.run(ENDS[end])
    provider.go_on.set()
    view = run_lab.fleet.wait_final(job)
    assert view.job.reason is Reason.VERIFY_FAILED, (view.job, run_lab.fleet.output(job))
    assert "used 3 calls of models" in notes(view)
    # The first call broke off; the same was asked again, and then the model was told what its command said.
    broken, *completed = [entry for entry in recorded(there, view.tasks[0].id) if entry["kind"] == "end"]
    assert broken["end"] in {"abandoned", "interrupted"}
    assert broken["charge"]["estimated"]
    sizes = [len(asked.body) // 4 for asked in provider.asked[1:]]
    assert [entry["end"] for entry in completed] == ["completed"] * 2
    assert [entry["charge"]["used"] for entry in completed] == [
        {"input": size - size // 2, "cached": size // 2, "output": provider.output} for size in sizes
    ]


def recorded(there: container.Container, task: str) -> list[dict[str, Any]]:
    """What a task's record says."""
    log = there.get(f"/var/lib/agentina/default/tasks/{task}/{record.NAME}").decode()
    return [json.loads(line[9:]) for line in log.splitlines()]
