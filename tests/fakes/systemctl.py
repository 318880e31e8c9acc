"""A systemd for one instance: a program called ``systemctl`` that keeps units in a file, for tests without PID 1."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """#!{python}
import json, sys
from pathlib import Path
path = Path({state!r})
state = json.loads(path.read_text())
arguments = [word for word in sys.argv[1:] if not word.startswith("-")]
state["calls"].append(arguments)
verb, unit = arguments[0] if arguments else "", arguments[-1] if arguments else ""
code = 0
if "--version" in sys.argv:
    print("systemd", state["version"], "(252.38-1)")
elif verb == "enable":
    state["enabled"].append(unit)
elif verb in {{"start", "restart"}}:
    if state["broken"]:
        print("Job for", unit, "failed.", file=sys.stderr)
        code = 1
    else:
        state["active"].append(unit)
elif verb == "disable":
    state["enabled"] = [name for name in state["enabled"] if name != unit]
    state["active"] = [name for name in state["active"] if name != unit]
elif verb == "stop":
    state["active"] = [name for name in state["active"] if name not in arguments[1:]]
elif verb == "is-active":
    code = 0 if unit in state["active"] else 3
elif verb == "is-enabled":
    code = 0 if unit in state["enabled"] else 1
elif verb == "is-failed":
    code = 0 if state["broken"] else 1
elif verb == "cat":
    print("# /etc/systemd/system/agentina@.service\\n[Service]", *state["credentials"], sep="\\n")
elif verb == "show":
    print("ActiveState=failed\\nSubState=failed\\nResult=exit-code" if state["broken"] else
          "ActiveState=active\\nSubState=running\\nResult=success")
elif verb == "list-units":
    import fnmatch
    for name in fnmatch.filter(state["active"], unit):
        print(name, "loaded active running agentina task")
path.write_text(json.dumps(state))
sys.exit(code)
"""


class Systemctl:
    """The program, first on the PATH, and its units."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = directory / "units.json"
        self._write({"version": 252, "enabled": [], "active": [], "broken": False, "calls": [], "credentials": []})
        program = directory / "systemctl"
        program.write_text(_PROGRAM.format(python=sys.executable, state=str(self._path)))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    @property
    def state(self) -> dict[str, Any]:
        """``enabled`` and ``active`` units, ``calls`` so far."""
        state: dict[str, Any] = json.loads(self._path.read_text())
        return state

    def put(self, **changes: Any) -> None:
        """Change the state: ``broken`` units do not start."""
        self._write({**self.state, **changes})

    def _write(self, state: dict[str, Any]) -> None:
        self._path.write_text(json.dumps(state))
