from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentina.executors import cloning


@pytest.fixture
def cgroup() -> Path:
    mounts = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    for mount in mounts:
        directory = mount / f"agentina-test-{os.getpid()}"
        try:
            directory.mkdir()
        except OSError:
            continue
        if (directory / "cgroup.procs").exists():
            return directory
        directory.rmdir()
    pytest.skip("no cgroup v2 that can be written here")


def test_child_is_born_in_the_cgroup(cgroup: Path) -> None:
    reader, writer = os.pipe()
    pid = cloning.fork_into(str(cgroup))
    if pid == 0:
        os.write(writer, Path("/proc/self/cgroup").read_bytes())
        os._exit(7)
    os.close(writer)
    own = os.read(reader, 4096).decode().splitlines()
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert f"0::/{cgroup.name}" in "".join(own) or any(line.endswith(cgroup.name) for line in own)
    cgroup.rmdir()


def test_refusal_makes_no_child(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="clone3"):
        cloning.fork_into(str(tmp_path))
