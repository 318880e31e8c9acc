"""Packages that bring an AI agent's command line: it says its version, and otherwise replays a recorded stream."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Final

from tests.fakes import agent_cli

#: Waits for ``$GATE``, if there is such a variable.
_PROGRAM: Final = """#!/bin/sh
if [ "$1" = --version ]; then echo "{version} (Stand-in)"; exit; fi
cat > "$HOME/stdin"
echo "this is {version} at $0"
until [ -z "$GATE" ] || [ -e "$GATE" ]; do sleep 0.05; done
cat {recording}
"""


def program(version: str, *, recording: str = "claude_ok") -> bytes:
    """The program."""
    return _PROGRAM.format(version=version, recording=agent_cli.RECORDINGS / f"{recording}.jsonl").encode()


def tarball(path: Path, content: dict[str, bytes | tarfile.TarInfo]) -> Path:
    """An archive as npm's: files by name, whose permissions say nothing, or whatever a hostile one has."""
    with tarfile.open(path, "w:gz") as tar:
        for name, what in content.items():
            if isinstance(what, tarfile.TarInfo):
                what.name = name
                tar.addfile(what)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(what)
            tar.addfile(entry, io.BytesIO(what))
    return path


def wheel(path: Path, content: dict[str, bytes]) -> Path:
    """An archive as Python's."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, what in content.items():
            archive.writestr(name, what)
    return path
