"""Listening Unix sockets in directories whose path may be longer than an address takes."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from agentina.system import files


class Listening:
    """A listening socket and its name. Nothing is done by a path that could lead elsewhere meanwhile."""

    def __init__(self, directory: Path | str, name: str, *, mode: int, queue: int) -> None:
        """Bind, in place of what a killed process left; however long the path is (unix(7) takes 107 bytes).

        Raises:
            OSError: It cannot be made.

        """
        self._name = name
        self._directory = os.open(directory, files.DIRECTORY)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        # It gets its name when it is ready: whoever finds it can connect.
        unready = f".{name}"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unready, dir_fd=self._directory)
            self.socket.bind(f"/proc/self/fd/{self._directory}/{unready}")
            os.chmod(unready, mode, dir_fd=self._directory)
            self.socket.listen(queue)
            os.rename(unready, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            self.socket.close()
            os.close(self._directory)
            raise

    def remove(self) -> None:
        """Take the name away. Where its directory is gone with it, nothing is left to do."""
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)
