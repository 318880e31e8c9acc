"""Tasks in slots of a host, without a daemon around them: the executor, as the daemon's user has it."""

from __future__ import annotations

import json
import textwrap
from typing import Any, Final

from tests.vm import host

#: The state directory of the instance that tests use.
STATE: Final = "/var/lib/agentina/contract"
#: The installed release's libraries.
RELEASE: Final = "$(ls -d /opt/agentina/releases/*/lib /opt/agentina/releases/*/lib-cp311 | paste -sd:)"
#: What runs there as the daemon's user: an executor and launches, without a daemon around them.
PRELUDE: Final = """
import asyncio, json, sys, time
from pathlib import Path
from agentina.executors import contract, systemd
from agentina.executors.contract import Condition, StopReason
from agentina.system import clock
STATE = Path("/var/lib/agentina/contract")
def launch(name, *argv, **changes):
    directory = STATE / "tasks" / name
    for part in ("workspace", "home"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    fields = dict(task_id=name, directory=directory, argv=list(argv), workspace=directory / "workspace",
        environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/var/lib/agentina/task/home", "SECRET": "s3cr3t"},
        memory_bytes=64 << 20, cpus=1.0, pids=100, disk_bytes=1 << 30, output_bytes=1 << 20, timeout_seconds=600.0,
        grace_seconds=5.0, lease_deadline=clock.SystemClock().boot() + 900)
    return contract.Launch(**{**fields, **changes})
def shell(name, script, **changes):
    return launch(name, "/bin/sh", "-c", script, **changes)
def show(executor, directory):
    result = executor.read_result(directory)
    import msgspec
    output = (directory / "output.log").read_text(errors="replace") if (directory / "output.log").exists() else ""
    return {"result": None if result is None else msgspec.to_builtins(result), "output": output,
            "condition": executor.adopt(directory)[0].value}
async def run(executor, launched):
    await executor.start(launched)
    await executor.wait(launched.directory)
    return show(executor, launched.directory)
def unit_of(launched):
    return "agentina-task@" + systemd._read(launched.directory / "started")["slot"][0] + ".service"
async def opened():
    executor = systemd.SystemdExecutor(STATE)
    await executor.open()
    return executor
"""


def prepare(there: host.Host) -> None:
    """Give a host the instance for tests."""
    there.run(f"install -d -o agentina -g agentina -m 700 {STATE} {STATE}/tasks")


def python(there: host.Host, script: str, *, user: str = "agentina", seconds: float = host.PATIENCE) -> Any:
    """Run ``script`` there after the prelude, as the daemon's user; what it prints as JSON."""
    there.put((PRELUDE + textwrap.dedent(script)).encode(), "/run/test-script.py")
    said = there.run(f"cd / && PYTHONPATH={RELEASE} python3 -B /run/test-script.py", user=user, seconds=seconds)
    return json.loads(said.strip().splitlines()[-1])


def unit_property(there: host.Host, unit: str, name: str) -> str:
    """A property of a unit, as systemctl shows it."""
    return there.run(f"systemctl show -P {name} {unit}").strip()


def run_one(there: host.Host, script: str, **changes: Any) -> Any:
    """Run a shell script as a task; its result and output."""
    name = f"job_{abs(hash((script, str(changes)))) % 10**16:016d}.1"
    arguments = ", ".join(f"{key}={value!r}" for key, value in changes.items())
    return python(
        there,
        f"""
        async def main():
            executor = await opened()
            print(json.dumps(await run(executor, shell({name!r}, {script!r}, {arguments}))))
            await executor.close()
        asyncio.run(main())
        """,
    )
