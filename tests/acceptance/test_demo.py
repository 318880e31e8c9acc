"""The first command a person types."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentina.cli import demo_job
from tests.acceptance import fleet as fleets
from tests.fakes import deadlines, procfs


def demo(root: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentina", "demo", *options]
    environment = {**os.environ, "AGENTINA_ROOT": str(root), "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=deadlines.HANG, check=False)


def processes_of(root: Path) -> list[str]:
    ours = f"AGENTINA_ROOT={root}".encode()
    pids = {pid for pid, variables in procfs.environments().items() if ours in variables.split(b"\0")} - {os.getpid()}
    commands = procfs.command_lines()
    return [commands[pid].replace(b"\0", b" ").decode() for pid in pids if pid in commands]


def test_demo_runs_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    done = demo(root)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("passed", "patch (", "+Changed by the demo job.", "report/tests.xml", "ATTEMPT", "AGENT"):
        assert part in done.stdout
    assert not root.exists()
    assert processes_of(root) == []


def test_kept_demo_can_be_used_and_ended(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    done = demo(root, "--keep", "--json")
    document = json.loads(done.stdout)
    assert document["kept"]
    assert document["job"]["job"]["state"] == "succeeded"
    fleet = fleets.Fleet(root)
    try:
        assert fleet.run("status").returncode == 0
        assert fleet.run("job", "run", "--", "echo", "again").stdout == "again\n"
    finally:
        # As the demo said: these two processes are all there is.
        line = next(line for line in done.stderr.splitlines() if line.startswith("To end it: kill"))
        pids = [int(word) for word in line.partition(";")[0].split() if word.isdigit()]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + deadlines.HANG
    while processes_of(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(root) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_demo_cleans_up(tmp_path: Path, number: int) -> None:
    root = tmp_path / "demo"
    command = [sys.executable, "-m", "agentina", "demo"]
    environment = {**os.environ, "AGENTINA_ROOT": str(root)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"-----"):
            break
    process.send_signal(number)
    process.communicate(timeout=deadlines.HANG)
    assert process.returncode == 130
    assert processes_of(root) == []
    assert not root.exists()


def test_root_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    refused = demo(tmp_path)
    assert refused.returncode == 6
    assert (tmp_path / "precious").read_text() == "x"


def test_without_git_a_plain_job_runs(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "uname", "mkdir", "tee"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    done = demo(tmp_path / "demo", PATH=str(tools))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no git" in done.stderr
    assert "report/output.txt" in done.stdout


def test_outside_of_a_checkout_a_repository_is_made(tmp_path: Path) -> None:
    choice = demo_job.made_repository(tmp_path)
    repository = choice.document["workspace"]["git"].removeprefix("file://")
    done = subprocess.run(
        ["/bin/sh", "-ec", choice.document["payload"]["script"]],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK" in done.stdout
    changed = subprocess.run(["git", "diff", "--stat"], cwd=repository, capture_output=True, text=True, check=True)
    assert "calculator.py" in changed.stdout
