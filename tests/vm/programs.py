"""Command lines of AI agents on hosts: the real ones (tests/fakes/real_clis.py) as its own copies, and stand-ins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from tests.fakes import real_clis, stand_in_cli
from tests.vm import host

#: By runner, the names of the programs that there is a stand-in for.
STAND_INS: Final = {"claude-code": "claude", "codex": "codex"}


class Copies:
    """The copies of one host, each made when it is needed first; the test is skipped where it cannot be had."""

    def __init__(self, there: host.Host) -> None:
        self._there = there
        self._made: dict[str, str] = {}

    def name(self, runner: str) -> str:
        """Name and version of the host's copy of a runner's program."""
        if runner not in self._made:
            self._made[runner] = self._make(runner)
        return self._made[runner]

    def _make(self, runner: str) -> str:
        program = real_clis.obtain(real_clis.CLIS[runner])
        if program.suffix == ".js":
            node = shutil.which("node")
            assert node is not None
            self._there.put(Path(node).resolve(), "/usr/local/bin/node", mode=0o755)
        self._there.put(program.parent, "/root/program")
        install = f"agentina runner install {runner} --from /root/program --program {program.name}"
        self._there.run(f"{install}; rm -r /root/program")
        return self._there.run(f"agentina runner list | grep -o '^{runner}@[^ ]*'").strip()


def stand_in(there: host.Host) -> None:
    """Have a host's daemon use stand-ins."""
    for name in STAND_INS.values():
        there.put(Path(stand_in_cli.__file__), f"/usr/local/bin/{name}", mode=0o755)
    there.run("systemctl reload agentina@default")


def job(runner: str, **fields: Any) -> dict[str, Any]:
    """What a job for one of them (``codex``, ``codex@0.163.0``) says besides what every job for an AI agent does."""
    payload = {"prompt": "test_calc.py fails. Fix calc.py."}
    model = real_clis.CLIS[runner.partition("@")[0]].model
    if model is not None:
        payload["model"] = model
    return {"runner": runner, "payload": payload, "resources": {"memory": "2GiB"}, **fields}
