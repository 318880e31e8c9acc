"""A control plane and agents as real processes under one root, driven by the real command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 20.0
_ADDRESS = re.compile(rb"http://127\.0\.0\.1:\d+")


class Fleet:
    """Start with :meth:`serve`; :meth:`close` ends every process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *arguments: str, text: str = "", seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run one ``agentina`` command to its end; ``text`` is its stdin."""
        return subprocess.run(
            [sys.executable, "-m", "agentina", *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=self._environment(),
            timeout=seconds,
            check=False,
        )

    def answer(self, *arguments: str, text: str = "") -> str:
        """The stdout of a command that must succeed."""
        done = self.run(*arguments, text=text)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def document(self, *arguments: str) -> Any:
        """The JSON document of a command that must succeed."""
        return json.loads(self.answer(*arguments, "--json"))

    def serve(self) -> None:
        """Start a control plane and log in."""
        token_file = self.root / "operator-token"
        log = self.start(
            "control-plane", "control-plane", "serve", "--listen", "127.0.0.1:0", "--token-file", str(token_file)
        )
        self.await_(lambda: _ADDRESS.search(log.read_bytes()) is not None, "control-plane", log)
        found = _ADDRESS.search(log.read_bytes())
        assert found is not None
        self.url = found[0].decode()
        self.answer("login", self.url, "--token-file", str(token_file))

    def install(self, instance: str = "default", *options: str) -> str:
        """Mint a token and install an instance with it; the token."""
        token = self.answer("token", "create").strip()
        arguments = ["install", "--control-plane", self.url, "--token-file", "-", "--instance", instance, *options]
        self.answer(*arguments, text=token)
        return token

    def start_daemon(self, instance: str = "default") -> None:
        """Start an instance's daemon and wait until it is online."""
        log = self.start(instance, "daemon", "--instance", instance)
        self.await_(lambda: self.run("status", "--instance", instance).returncode == 0, instance, log)

    def start(self, name: str, *arguments: str) -> Path:
        """Start a long-running command; its log."""
        path = self.root / f"{name}.log"
        with path.open("ab") as log:
            command = [sys.executable, "-m", "agentina", *arguments]
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment())
        return path

    def await_(self, is_so: Any, name: str, log: Path) -> None:
        """Wait until ``is_so()``; fails with the log when the process ends or it takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not is_so():
            ended = self._processes[name].poll()
            if ended is not None or time.monotonic() > deadline:
                self.stop(name)
                pytest.fail(f"{name} ended with {ended}, or took too long: {log.read_text()}")
            time.sleep(0.05)

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        """End a long-running command; its exit code."""
        process = self._processes.pop(name)
        process.send_signal(number)
        return process.wait(20)

    def close(self) -> None:
        """End everything."""
        for name in list(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(name)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "AGENTINA_ROOT": str(self.root), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
