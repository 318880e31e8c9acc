"""Directories mounted elsewhere, for tests that run as root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def bound(source: Path, place: Path) -> Iterator[None]:
    """Have ``source`` at ``place`` too; where that is not allowed the test is skipped."""
    if subprocess.run(["mount", "--bind", source, place], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    # Whoever has it renamed renames the place too.
    mounted = os.open(place, os.O_PATH)
    try:
        yield
    finally:
        place = Path(f"/proc/self/fd/{mounted}").readlink()
        os.close(mounted)
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def small(place: Path, option: str) -> Iterator[Path]:
    """A file system in memory at ``place``, bounded by ``option`` (tmpfs(5): ``size=256k``, ``nr_inodes=16``)."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
