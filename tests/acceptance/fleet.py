"""A control plane and daemons as real processes under a temporary root, to be killed and started again at will."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from agentina import errors
from agentina.client import api, local
from agentina.protocol import api as messages
from agentina.protocol import states
from agentina.system import paths

AGENTINA = [sys.executable, "-m", "agentina"]
#: Seconds any single thing may take on a slow, shared machine.
PATIENCE = 60.0


def wait_for(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """Poll ``condition`` (another process's state has no event) until it is truthy, and return its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


class Fleet:
    """One control plane and any number of instances; everything is cleaned up by :func:`running`."""

    def __init__(self, root: Path, *, lease_seconds: float = 180.0, heartbeat_seconds: float = 60.0) -> None:
        self.root = root
        self.layout = paths.Layout(root / "host")
        self.data = root / "control-plane"
        self.token_file = root / "operator-token"
        self.url = f"http://127.0.0.1:{free_port()}"
        self._timing = ["--lease", f"{lease_seconds}s", "--heartbeat", f"{heartbeat_seconds}s"]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: api.Client | None = None

    # --- processes -------------------------------------------------------------------------------------------------

    def start_control_plane(self, *, wait: bool = True) -> None:
        """Start it on the same address and data as before."""
        listen = self.url.removeprefix("http://")
        command = ["control-plane", "serve", "--data", str(self.data), "--listen", listen]
        self._start("control-plane", [*command, "--token-file", str(self.token_file), *self._timing])
        if wait:
            wait_for(self.is_ready, "the control plane answers")

    def start_daemon(self, instance: str = "default", *, wait: bool = True) -> None:
        """Start the daemon of an installed instance."""
        self._start(instance, ["daemon", "--instance", instance, "--root", str(self.layout.root)])
        if wait:
            wait_for(lambda: self.status(instance) is not None, f"daemon {instance} answers")

    def kill(self, name: str) -> None:
        """kill -9 of one of our processes."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> float:
        """SIGTERM; returns the seconds until the process had ended.

        Raises:
            AssertionError: It did not end, or not with exit code 0.
        """
        process = self._processes.pop(name)
        started = time.monotonic()
        process.terminate()
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not end on SIGTERM") from None
        assert code == 0, f"{name} ended with {code}: {self.log(name)[-3000:]}"
        return time.monotonic() - started

    def is_running(self, name: str) -> bool:
        """Whether the process lives."""
        return name in self._processes and self._processes[name].poll() is None

    def pid(self, name: str) -> int:
        """Process id of one of our processes."""
        return self._processes[name].pid

    def log(self, name: str) -> str:
        """What the process has written to stderr and stdout, over all its starts."""
        return (self.root / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, arguments: list[str]) -> None:
        assert not self.is_running(name), f"{name} runs already"
        with (self.root / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*AGENTINA, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment()
            )

    def close(self) -> None:
        """End every process and every task that is still there."""
        for name in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                self.kill(name)
        end_tasks_below(self.layout.root)
        if self._client is not None:
            self._client.close()

    # --- the product, as its users use it ---------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Environment of every command: the root, and the operator's token once there is one."""
        environment = {**os.environ, "AGENTINA_ROOT": str(self.layout.root), "AGENTINA_CONTROL_PLANE": self.url}
        environment["AGENTINA_API_TOKEN_FILE"] = str(self.token_file)
        return environment

    def run(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run an ``agentina`` command to its end."""
        done = subprocess.run(
            [*AGENTINA, *arguments], input=stdin, capture_output=True, text=True, env=self.environment(), check=False
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def install(self, instance: str = "default", *options: str) -> str:
        """Mint a token and install an instance with it; returns the agent's id."""
        token = self.client.create_tokens(messages.TokenCreate()).tokens[0].token
        command = ["install", "--token-file", "-", "--control-plane", self.url, "--instance", instance, "--no-service"]
        done = self.run(*command, *options, "--json", stdin=token)
        return str(msgspec.json.decode(done.stdout)["agent_id"])

    @property
    def client(self) -> api.Client:
        """A client with the operator's token."""
        if self._client is None:
            self._client = api.Client(self.url, token=self.token_file.read_text().strip())
        return self._client

    def is_ready(self) -> bool:
        """Whether the control plane answers /readyz with 200."""
        import http.client  # noqa: PLC0415 - only here

        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def status(self, instance: str = "default") -> dict[str, Any] | None:
        """The daemon's own status, or None when it does not answer."""
        try:
            return local.ask(self.layout.instance(instance), "status")
        except errors.AgentinaError:
            return None

    def submit(self, argv: list[str], **keys: Any) -> str:
        """Submit a job; returns its id."""
        document = {"name": keys.pop("name", "job"), "payload": {"argv": argv}, **keys}
        return self.client.submit_job(document).id

    def job(self, job_id: str) -> messages.JobView:
        """Everything about one job."""
        return self.client.get_job(job_id)

    def wait_final(self, job_id: str, *, seconds: float = PATIENCE) -> messages.JobView:
        """Wait until the job has ended."""

        def ended() -> messages.JobView | None:
            view = self.job(job_id)
            return view if view.job.state in states.FINAL else None

        return wait_for(ended, f"job {job_id} ends", seconds=seconds)  # type: ignore[no-any-return]

    def wait_state(self, job_id: str, state: states.State, *, seconds: float = PATIENCE) -> messages.JobView:
        """Wait until the job is in ``state``."""

        def reached() -> messages.JobView | None:
            view = self.job(job_id)
            return view if view.job.state is state else None

        return wait_for(reached, f"job {job_id} is {state.value}", seconds=seconds)  # type: ignore[no-any-return]


@contextlib.contextmanager
def running(root: Path, **options: Any) -> Iterator[Fleet]:
    """A fleet with a started control plane and no agents."""
    fleet = Fleet(root, **options)
    try:
        fleet.start_control_plane()
        yield fleet
    finally:
        fleet.close()


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_tasks_below(root: Path) -> None:
    """Kill what a killed daemon left running: it all has the root in its environment or command line."""
    marker = os.fsencode(str(root))
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if marker in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except OSError:
        return False
