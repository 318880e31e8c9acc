"""A real daemon with a gateway and the process executor, its control plane, and a provider of models."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tests.fakes import control, model_provider
from tests.integration.gateway import gates, test_keeper

RUN = (
    "import sys; from agentina.host import daemon; from agentina.system import paths\n"
    "sys.exit(daemon.run(paths.Layout(__import__('pathlib').Path(sys.argv[1])).instance('default')))\n"
)


class Bed:
    """A daemon with a gateway, its control plane and a provider."""

    def __init__(self, root: Path, plane: control.FakeControl, provider: model_provider.ModelProvider) -> None:
        self.root, self.plane, self.provider = root, plane, provider
        self.process: asyncio.subprocess.Process | None = None
        self.tool = root / "tool.py"
        self.tool.write_text(test_keeper.TOOL.replace("sys.exit(7)", ""))

    async def start(self) -> None:
        with (self.root / "daemon.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", RUN, str(self.root), stderr=log, stdout=log, stdin=asyncio.subprocess.DEVNULL
            )

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            await self.process.wait()

    @property
    def log(self) -> str:
        return (self.root / "daemon.log").read_text()


@contextlib.asynccontextmanager
async def made(
    provider: model_provider.ModelProvider | None = None, *, prepare: Callable[[Path], None] = lambda _: None
) -> AsyncIterator[Bed]:
    """One that runs, on a root that was prepared; its tasks and its daemon are ended at the end."""
    root = Path(tempfile.mkdtemp(prefix="ag-", dir="/tmp"))
    async with control.FakeControl() as plane, model_provider.running(provider) as running:
        bed = Bed(root, plane, running)
        gates.load(root, running.url)
        plane.install(root, gateway=str(root / "gateway.yaml"))
        (root / "etc/agentina/policy.yaml").write_text(f"hosts: ['*.example.com', '127.0.0.1:{running.port}']")
        prepare(root)
        await bed.start()
        yield bed
        for task in plane.tasks.values():
            if task.outcome is None:
                plane.cancel(task)
        await plane.until(lambda: all(task.outcome is not None for task in plane.tasks.values()))
        await bed.kill(signal.SIGTERM)
        assert "Traceback" not in bed.log, bed.log
    shutil.rmtree(root, ignore_errors=True)


def install_agents(root: Path) -> None:
    """Put stand-ins for the command lines of AI agents onto a host."""
    for runner, name in (("claude-code", "claude"), ("codex", "codex")):
        (root / name).symlink_to(Path(model_provider.__file__).with_name("stand_in_cli.py"))
        describe(root, runner, root / name)


def describe(root: Path, runner: str, program: Path) -> None:
    """Tell a host which program a runner has."""
    described = root / "etc/agentina/runners.d"
    described.mkdir(parents=True, exist_ok=True)
    (described / f"{runner}.yaml").write_text(f"program: {program}\n")
