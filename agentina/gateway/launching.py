"""How the gateway's process is started. Apart from the rest so that looking at it costs a daemon nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

#: Makes the process look at its settings and keys, say on stdout what is wrong with them, and end.
CHECK: Final = "--check"


def command(settings: Path, *options: str) -> list[str]:
    """What to start; its socket to the daemon is stdin."""
    return [sys.executable, "-P", "-m", "agentina.gateway.process", *options, str(settings)]


def environment() -> dict[str, str]:
    """What the process needs to find this very code, and its keys."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "CREDENTIALS_DIRECTORY") if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"}
