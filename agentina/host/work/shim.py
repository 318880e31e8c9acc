"""Has tasks find the command ``agentina`` where it is not installed for the whole system (a checkout, a container)."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

import agentina
from agentina.runners import contract
from agentina.system import files

_NAME: Final = "agentina"


def search_path(state_directory: Path) -> str:
    """Where tasks look for programs: the system's places and, if ``agentina`` is in none, one with it alone.

    Raises:
        AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``.

    """
    if shutil.which(_NAME, path=contract.SEARCH_PATH) is not None:
        return contract.SEARCH_PATH
    directory = state_directory / "bin"
    root = Path(agentina.__file__).parents[1]
    script = f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {shlex.quote(sys.executable)} -P -m agentina "$@"\n'
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise files.from_os_error(error, directory) from error
    path = directory / _NAME
    if not path.exists() or path.read_text("utf-8") != script:
        files.write_atomic(path, script.encode(), mode=0o755, durable=False)
    return f"{contract.SEARCH_PATH}:{directory}"
