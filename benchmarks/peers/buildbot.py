"""Buildbot: master and worker in a virtual environment of their own, jobs forced over its HTTP API."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Below those that the kernel gives to connections, thousands of which other benchmarks leave behind.
_PORT, _WORKER_PORT = 28410, 28411
_MASTER = f"""
from buildbot.plugins import *
c = BuildmasterConfig = {{}}
c['workers'] = [worker.Worker('w1', 'pass', max_builds=200)]
c['protocols'] = {{'pb': {{'port': 'tcp:{_WORKER_PORT}:interface=127.0.0.1'}}}}
names = ['b%d' % i for i in range(__BUILDERS__)]
command = [util.Property('a0'), util.Property('a1'), util.Property('a2'), util.Property('a3')]
factory = util.BuildFactory([steps.ShellCommand(command=command, logEnviron=False)])
c['builders'] = [util.BuilderConfig(name=n, workernames=['w1'], factory=factory, collapseRequests=False) for n in names]
fixed = {{k: util.FixedParameter(k, '') for k in ('branch', 'revision', 'repository', 'project')}}
c['schedulers'] = [schedulers.ForceScheduler(name='force', builderNames=names,
    codebases=[util.CodebaseParameter('', **fixed)],
    properties=[util.StringParameter(name='a%d' % i, default='') for i in range(4)])]
c['www'] = dict(port='tcp:{_PORT}:interface=127.0.0.1', plugins={{}})
c['buildbotNetUsageData'] = None
c['db'] = {{'db_url': 'sqlite:///state.sqlite'}}
c['title'] = 't'; c['titleURL'] = c['buildbotURL'] = 'http://127.0.0.1:{_PORT}/'
"""


class Buildbot:
    """A running master and worker; ``submit`` forces one build."""

    name = "buildbot"

    def __init__(self, builder_ids: list[int]) -> None:
        self._builders = builder_ids
        self._count = 0

    def submit(self, argv: list[str]) -> None:
        """Force a build that runs ``argv`` (at most four parts)."""
        self._count += 1
        padded = [*argv, *["0"] * (4 - len(argv))]
        parameters: dict[str, object] = {"builderid": self._builders[self._count % len(self._builders)]}
        parameters |= {f"a{index}": part for index, part in enumerate(padded)}
        body = {"id": self._count, "jsonrpc": "2.0", "method": "force", "params": parameters}
        answer = _request("POST", "/api/v2/forceschedulers/force", body)
        assert "result" in answer, answer

    def wait_idle(self) -> None:
        """Wait until every build is complete."""
        while _request("GET", "/api/v2/buildrequests?complete=false&limit=1")["buildrequests"]:
            time.sleep(0.05)


def install(directory: Path) -> Path:
    """The environment's bin directory; made once below ``directory``."""
    home = directory / "buildbot-venv"
    if not (home / "bin/buildbot").exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", home], check=True)
        packages = ["buildbot", "buildbot-worker", "buildbot-www", "setuptools<81"]
        base = f"{sys.base_prefix}/bin/python3"  # this environment has no pip of its own
        pip = [base, "-m", "pip", "--python", f"{home}/bin/python", "install", "--quiet", *packages]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
    return home / "bin"


@contextlib.contextmanager
def running(binaries: Path, *, builders: int) -> Iterator[Buildbot]:
    """A fresh master and worker, stopped and removed afterwards."""
    home = Path(tempfile.mkdtemp(prefix="bench-buildbot-"))
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    started: list[subprocess.Popen[bytes]] = []
    try:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        subprocess.run([binaries / "buildbot", "create-master", "-r", home / "m"], check=True, **quiet)  # type: ignore[call-overload]
        (home / "m/master.cfg").write_text(_MASTER.replace("__BUILDERS__", str(builders)))
        worker = [binaries / "buildbot-worker", "create-worker", home / "w", f"127.0.0.1:{_WORKER_PORT}", "w1", "pass"]
        subprocess.run(worker, check=True, **quiet)  # type: ignore[call-overload]
        for tool, where in (("buildbot", "m"), ("buildbot-worker", "w")):
            started.append(subprocess.Popen([binaries / tool, "start", "--nodaemon", home / where], **quiet))  # type: ignore[call-overload]
        yield Buildbot(_wait_ready(builders))
    except TimeoutError as error:
        for log in home.glob("*/twistd.log"):
            error.add_note(f"{log}: {log.read_text()[-2000:]}")
        raise
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_ready(builders: int) -> list[int]:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        with contextlib.suppress(OSError, KeyError, IndexError, ValueError):
            if _request("GET", "/api/v2/workers")["workers"][0]["connected_to"]:
                found = _request("GET", "/api/v2/builders")["builders"]
                return [builder["builderid"] for builder in found if builder["name"].startswith("b")][:builders]
        time.sleep(0.3)
    raise TimeoutError("buildbot did not get ready")


def _request(method: str, path: str, body: dict[str, object] | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", _PORT, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer
