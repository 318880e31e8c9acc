"""A control plane and daemons as real processes under a temporary root, to be killed and started again at will."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from agentina import errors
from agentina.client import api, local
from agentina.protocol import api as messages
from agentina.protocol import states
from agentina.system import paths
from tests.fakes import deadlines, procfs
from tests.integration.gateway import gates

AGENTINA = [sys.executable, "-m", "agentina"]
#: Seconds any single thing may take on a slow, shared machine.
PATIENCE = deadlines.HANG


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
    """One control plane and any number of instances below one root; :func:`running` cleans up after it.

    ``root`` is the ``--root`` of every command, the control plane's default data directory lies below it, and
    ``<name>.log`` has what a process wrote.
    """

    def __init__(
        self,
        root: Path,
        *,
        lease_seconds: float = 180.0,
        heartbeat_seconds: float = 60.0,
        certificate: tuple[Path, Path] | None = None,
        listen: str = "127.0.0.1",
        variables: dict[str, str] | None = None,
    ) -> None:
        """``certificate`` and key make it serve TLS; ``variables`` are added to every environment.

        ``listen`` is the address it listens on; loopback has to be part of it.
        """
        self.root = root
        self.layout = paths.Layout(root)
        self.data = root / "var/lib/agentina-control-plane"
        self.token_file = root / "operator-token"
        self.port = 0
        self.variables = variables or {}
        self._certificate = certificate
        self._listen = listen
        self._timing = ["--lease", f"{lease_seconds}s", "--heartbeat", f"{heartbeat_seconds}s"]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: api.Client | None = None

    @property
    def url(self) -> str:
        """The control plane's address, the same over all its starts."""
        return f"http{'s' if self._certificate else ''}://127.0.0.1:{self.port}"

    # --- processes -------------------------------------------------------------------------------------------------

    def start_control_plane(self, *, wait: bool = True, variables: dict[str, str] | None = None) -> None:
        """Start it on the same address and data as before; the first time, log in as its operator."""
        first = self.port == 0
        if first:
            self.port = free_port()
        command = ["control-plane", "serve", "--listen", f"{self._listen}:{self.port}", "--data", str(self.data)]
        command += ["--token-file", str(self.token_file), *self._timing]
        if self._certificate is not None:
            command += ["--tls-cert", str(self._certificate[0]), "--tls-key", str(self._certificate[1])]
        self.start("control-plane", *command, variables=variables)
        if wait:
            self.wait_running("control-plane", self.is_ready, "the control plane answers")
        if first and wait:
            trust = [] if self._certificate is None else ["--ca-file", str(self._certificate[0])]
            self.answer("login", self.url, "--token-file", str(self.token_file), *trust)

    def start_daemon(
        self, instance: str = "default", *, wait: bool = True, variables: dict[str, str] | None = None
    ) -> None:
        """Start the daemon of an installed instance, and wait until it has a session."""
        self.start(instance, "daemon", "--instance", instance, variables=variables)
        if wait:
            self.wait_running(instance, lambda: self.is_online(instance), f"daemon {instance} is online")

    def start(self, name: str, *arguments: str, variables: dict[str, str] | None = None) -> None:
        """Start a long-running ``agentina`` command."""
        assert not self.is_running(name), f"{name} runs already"
        environment = {**self.environment(), **(variables or {})}
        with (self.root / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*AGENTINA, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def wait_running(self, name: str, condition: Callable[[], Any], what: str) -> Any:
        """:func:`wait_for`, given up at once, with its log, when the process ends."""

        def looked() -> Any:
            assert self.is_running(name), f"{name} ended: {self.log(name)[-3000:]}"
            return condition()

        return wait_for(looked, what)

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
        self._processes[name].terminate()
        return self.wait_end(name)

    def wait_end(self, name: str) -> float:
        """Wait for the orderly end of a process that was told to end; returns the seconds it took.

        Raises:
            AssertionError: It did not end, or not with exit code 0.
        """
        process = self._processes.pop(name)
        started = time.monotonic()
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not end") from None
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

    def close(self) -> None:
        """End every process and every task that is still there."""
        for name in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                self.kill(name)
        end_tasks_below(self.root)
        if self._client is not None:
            self._client.close()

    # --- the product, as its users use it ---------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Environment of every command: the root; what the operator needs is in the login."""
        return {**os.environ, "AGENTINA_ROOT": str(self.root), "COLUMNS": "200", **self.variables}

    def run(self, *arguments: str, text: str = "", seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run one ``agentina`` command to its end; ``text`` is its stdin."""
        return subprocess.run(
            [*AGENTINA, *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=self.environment(),
            timeout=seconds,
            check=False,
        )

    def answer(self, *arguments: str, text: str = "") -> str:
        """The stdout of a command that must succeed."""
        done = self.run(*arguments, text=text)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def document(self, *arguments: str, text: str = "") -> Any:
        """The JSON document of a command that must succeed."""
        return msgspec.json.decode(self.answer(*arguments, "--json", text=text))

    def new_token(self) -> str:
        """An activation token."""
        return self.client.create_tokens(messages.TokenCreate()).tokens[0].token

    def install(self, instance: str = "default", *options: str, token: str = "", url: str = "") -> str:
        """Install an instance, with a new token unless one is given; returns the agent's id."""
        command = ["install", "--token-file", "-", "--control-plane", url or self.url, "--instance", instance]
        document = self.document(*command, "--no-service", *options, text=token or self.new_token())
        return str(document["agent_id"])

    def add_gateway(self, instance: str, url: str) -> None:
        """Give an installed instance a gateway to models at ``url``, and let nothing of this machine hold jobs back."""
        directory = self.root / "etc/agentina"
        gates.load(directory, url)
        path = self.layout.instance(instance).config
        path.write_text(f"{path.read_text()}\ngateway: {directory}/gateway.yaml\nmemory_reserve: 0\ndisk_reserve: 0\n")

    @property
    def client(self) -> api.Client:
        """A client with the operator's token."""
        if self._client is None:
            trust = "" if self._certificate is None else str(self._certificate[0])
            self._client = api.Client(self.url, token=self.token_file.read_text().strip(), ca_file=trust)
        return self._client

    def is_ready(self) -> bool:
        """Whether the control plane answers /readyz with 200."""
        return self.readiness()[0] == 200

    def readiness(self) -> tuple[int, str]:
        """Status and text of /readyz; 0 when nothing answers."""
        context = None if self._certificate is None else ssl.create_default_context(cafile=self._certificate[0])
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5, context=context) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""

    def status(self, instance: str = "default") -> dict[str, Any] | None:
        """The daemon's own status, or None when it does not answer."""
        try:
            return local.ask(self.layout.instance(instance), "status")
        except errors.AgentinaError:
            return None

    def is_online(self, instance: str = "default") -> bool:
        """Whether the daemon answers and has a session."""
        return (self.status(instance) or {}).get("state") in {"online", "draining"}

    def problems(self, instance: str = "default") -> set[str]:
        """Codes of what needs attention, in the daemon's own words; empty when it does not answer."""
        return {problem["code"] for problem in (self.status(instance) or {}).get("problems", [])}

    def submit_script(self, script: str, **keys: Any) -> str:
        """Submit a job that runs a shell script; returns its id."""
        return self.client.submit_job({"name": "script", "payload": {"script": script}, **keys}).id

    def output(self, job_id: str, *, task: str | None = None) -> bytes:
        """All output the control plane has of a job's newest task, or of a given one."""
        content = b""
        while piece := self.client.get_output(job_id, task=task, offset=len(content), wait=0).data:
            content += piece
        return content

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
    """A port nobody listens on now; below those that the kernel gives to connections, so that it stays free."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def end_tasks_below(root: Path) -> None:
    """Kill what a killed daemon left running: it all has the root in its environment or command line."""
    marker = os.fsencode(str(root))
    commands = procfs.command_lines()
    for pid, environment in procfs.environments().items():
        if pid != os.getpid() and marker in environment + commands.get(pid, b""):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except OSError:
        return False
