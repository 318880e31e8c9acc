"""Reads what an executor left of a task that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.system import files

_MAX_RESULT: Final = 1 << 20


def read(directory: Path) -> contract.Result | None:
    """The result in a task's directory; None: there is none that can be read.

    Raises:
        AgentinaError: ``STATE_UNWRITABLE``: this process cannot look, for want of a descriptor, say.

    """
    try:
        # The task of an executor whose directories are the daemon's own may have put a FIFO there.
        content = files.read_bounded(f"{directory}/result.json", limit=_MAX_RESULT, wait=False)
        return msgspec.json.decode(content, type=contract.Result)
    except OSError as error:
        if error.errno in files.PASSING:
            # Nobody knows whether there is one: taken for none, what has ended well would be lost, and done again.
            raise files.from_os_error(error, directory) from error
        return None
    except (msgspec.MsgspecError, errors.AgentinaError):
        return None
