"""A control plane and an agent as real processes, for measuring: everything the promises need is switched on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentina import errors
from agentina.client import api, local
from agentina.protocol import api as messages
from agentina.system import paths
from benchmarks import measure

_AGENTINA = [sys.executable, "-m", "agentina"]


class Lab:
    """One control plane and one agent with ``slots`` tasks at once."""

    def __init__(self, home: Path, *, tls: bool) -> None:
        self.home = home
        self.layout = paths.Layout(home / "host")
        self.token_file = home / "operator-token"
        self.ca_file = home / "cert.pem" if tls else None
        self.url = ""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: api.Client | None = None

    @property
    def client(self) -> api.Client:
        """A client with the operator's token."""
        if self._client is None:
            token = self.token_file.read_text().strip()
            self._client = api.Client(self.url, token=token, ca_file=str(self.ca_file or ""))
        return self._client

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every command."""
        wanted = {"AGENTINA_ROOT": str(self.layout.root), "AGENTINA_CONTROL_PLANE": self.url}
        return {**os.environ, **wanted, "AGENTINA_API_TOKEN_FILE": str(self.token_file)}

    def start(self, name: str, *arguments: str) -> None:
        """Start a process of the product, logging to a file."""
        with (self.home / f"{name}.log").open("ab") as log:
            command = [*_AGENTINA, *arguments]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)

    def start_control_plane(self) -> None:
        """Start it on a free port and wait until it is ready."""
        port = _free_port()
        self.url = f"{'https' if self.ca_file else 'http'}://127.0.0.1:{port}"
        tls = []
        if self.ca_file:
            make_certificate(self.ca_file, self.home / "key.pem")
            tls = ["--tls-cert", str(self.ca_file), "--tls-key", str(self.home / "key.pem")]
        command = ["control-plane", "serve", "--data", str(self.home / "data"), "--listen", f"127.0.0.1:{port}"]
        self.start("control-plane", *command, "--token-file", str(self.token_file), *tls)
        _wait(self.token_file.exists)
        _wait(self._answers)

    def start_agent(self, *, slots: int) -> None:
        """Install an instance and start its daemon."""
        token = self.client.create_tokens(messages.TokenCreate()).tokens[0].token
        command = [*_AGENTINA, "install", "--token-file", "-", "--control-plane", self.url, "--no-service"]
        command += ["--max-concurrent-tasks", str(slots), *(["--ca-file", str(self.ca_file)] if self.ca_file else [])]
        unlimited = messages.OrganizationUpdate(max_concurrent_tasks_per_agent=1000, max_agents=100_000)
        self.client.set_organization("default", unlimited)
        subprocess.run(command, input=token.encode(), check=True, env=self.environment, capture_output=True)
        self.start("daemon", "daemon", "--instance", "default", "--root", str(self.layout.root))
        _wait(self._is_online)

    def submit(self, argv: list[str]) -> str:
        """Submit one small job."""
        return self.client.submit_job(_document(argv)).id

    def submit_all(self, argvs: list[list[str]]) -> list[str]:
        """Submit small jobs together, as `agentina job submit` does several files."""
        return [made.id for made in self.client.submit_jobs(map(_document, argvs))]

    def pids(self) -> list[int]:
        """Control plane and daemon with everything below them."""
        roots = [process.pid for process in self.processes.values()]
        return [pid for root in [*roots, *self.helpers()] for pid in measure.descendants(root)]

    def helpers(self) -> list[int]:
        """The nursery, which is nobody's child."""
        lock = next(self.layout.root.rglob("nursery.lock"), None)
        helpers = measure.named(str(lock)) if lock else []
        return [pid for pid in helpers if measure.parent(pid) not in helpers]

    def supervisors(self) -> list[int]:
        """Those of the ``process`` executor, with or without a task."""
        return [pid for root in self.helpers() for pid in measure.children(root)]

    def fences(self) -> list[int]:
        """Process ids of the supervisors whose task runs now, as their fences say."""
        fences = (self.layout.instance("default").tasks).glob("*/supervisor")
        found = []
        for fence in fences:
            with contextlib.suppress(OSError, ValueError):
                if not (fence.parent / "result.json").exists():
                    found.append(int(json.loads(fence.read_bytes())["pid"]))
        return found

    def _answers(self) -> bool:
        try:
            return self.client.health().status == 200
        except errors.AgentinaError:
            return False

    def _is_online(self) -> bool:
        try:
            return bool(local.ask(self.layout.instance("default"), "status")["state"] == "online")
        except errors.AgentinaError:
            return False

    def close(self) -> None:
        """Stop everything."""
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        marker = os.fsencode(str(self.layout.root))
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marker in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                    os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def running(*, slots: int = 0, tls: bool = False) -> Iterator[Lab]:
    """A fresh lab; no agent when ``slots`` is 0."""
    home = Path(tempfile.mkdtemp(prefix="agentina-lab-"))
    lab = Lab(home, tls=tls)
    try:
        lab.start_control_plane()
        if slots:
            lab.start_agent(slots=slots)
        yield lab
    finally:
        lab.close()
        shutil.rmtree(home, ignore_errors=True)


def _document(argv: list[str]) -> dict[str, Any]:
    return {"name": "bench", "payload": {"argv": argv}, "resources": {"memory": 16 << 20}}


def make_certificate(certificate: Path, key: Path) -> None:
    """A self-signed certificate for 127.0.0.1."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)


def _free_port() -> int:
    import socket  # noqa: PLC0415 - only here

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(condition: Any, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the lab did not get ready")
        time.sleep(0.02)
