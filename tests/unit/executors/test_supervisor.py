from __future__ import annotations

import json
import os
from pathlib import Path

from agentina.executors import supervising, supervisor


def test_fence_holds_only_what_was_written_last(tmp_path: Path) -> None:
    """A later daemon reads it as a whole, also when a shorter content took the place of a longer one."""
    fence, output = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("supervisor", "output.log"))
    directory = os.open(tmp_path, os.O_RDONLY)
    request = supervisor.Request(**json.loads(json.dumps(supervising._REHEARSED)))
    task = supervisor.Supervisor(request, supervisor.Descriptors(fence, directory, output), lambda *_: None)
    try:
        task._know(0)
        task._know(4_194_304)
        longer = (tmp_path / "supervisor").read_text()
        assert json.loads(longer)["main_pid"] == 4_194_304
        task.note_fault("x")
        shorter = (tmp_path / "supervisor").read_text()
        assert len(shorter) < len(longer)
        assert json.loads(shorter)["fault"] == "x"
    finally:
        task.close()
