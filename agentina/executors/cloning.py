"""fork(2), but the child begins its life in another cgroup: clone3(2) with CLONE_INTO_CGROUP (Linux 5.7).

Moving a process into a cgroup after its birth waits for an RCU grace period of the whole machine, 10 to 20 ms; a child
that is born there waits for nothing. Only for single-threaded processes that soon call execve(2): the child does not
run Python's own after-fork work. Standard library only: this is loaded into the nursery.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

#: The system call's number, the same on every architecture (it is newer than their split).
_SYS_CLONE3: Final = 435
_CLONE_INTO_CGROUP: Final = 0x2_0000_0000

# PyDLL keeps the interpreter's lock during the call: the child must find it held, as after fork(2).
_libc = ctypes.PyDLL(None, use_errno=True)


class _Arguments(ctypes.Structure):
    """``struct clone_args``, version 2."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
            "set_tid_size", "cgroup",
        )
    )  # fmt: skip


def fork_into(cgroup: str) -> int:
    """Fork; the child is in ``cgroup`` (a directory of cgroup v2) from its first instruction.

    Returns:
        0 in the child, the child's process id in the parent.

    Raises:
        OSError: The kernel refuses, for example because it is older, or the cgroup is gone. Nothing was made.
    """
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        arguments = _Arguments(flags=_CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD, cgroup=directory)
        pid: int = _libc.syscall(_SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    finally:
        os.close(directory)
    if pid < 0:
        raise OSError(ctypes.get_errno(), f"clone3: {os.strerror(ctypes.get_errno())}")
    return pid
