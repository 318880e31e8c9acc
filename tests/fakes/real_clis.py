"""Where the real command lines of AI agents are, if they can be had: packages of pip's and npm's bring them.

What was downloaded is kept in the cache of tests/vm/images.py.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.vm import images


class Cli(NamedTuple):
    """One of them."""

    #: Names its program, before all else.
    variable: str
    #: Its name in PATH.
    name: str
    #: What brings it: the module or directory, the path in it, and the distribution that was tried.
    package: str
    path: str
    distribution: str
    #: A model to ask for, where it does not choose one that the tests' providers have.
    model: str | None = None

    @property
    def is_of_npm(self) -> bool:
        """Whether npm brings it."""
        return "==" not in self.distribution


_HAIKU: Final = "anthropic/claude-haiku-4-5"
#: By runner.
CLIS: Final = {
    "claude-code": Cli("REAL_CLAUDE", "claude", "claude_agent_sdk", "_bundled/claude", "claude-agent-sdk==0.2.187"),
    "codex": Cli("REAL_CODEX", "codex", "codex_cli_bin", "bin/codex", "openai-codex-cli-bin==0.163.0"),
    "gemini": Cli(
        "REAL_GEMINI", "gemini", "package", "bundle/gemini.js", "@google/gemini-cli@0.61.0", "gemini-2.5-flash"
    ),
    "opencode": Cli("REAL_OPENCODE", "opencode", "package", "bin/opencode", "opencode-linux-x64@1.18.33", _HAIKU),
}


def obtain(cli: Cli) -> Path:
    """The program: installed, or downloaded; the test is skipped where it cannot be had."""
    found = installed(cli)
    if found is not None:
        return found
    final = images.cache() / cli.distribution.replace("/", "+")
    with images.locked(images.cache() / f"{final.name}.lock"):
        if not final.exists():
            try:
                with images.staged(final) as directory:
                    fetch(cli, directory)
            except OSError as error:
                pytest.skip(f"{error}; {cli.variable} can name the program")
    program = final / cli.package / cli.path
    if program.suffix == ".js" and shutil.which("node") is None:
        pytest.skip("node is not installed")
    return program


def installed(cli: Cli) -> Path | None:
    """The program, where it is installed."""
    places = [os.environ.get(cli.variable), shutil.which(cli.name)]
    bundled = None if cli.is_of_npm else importlib.util.find_spec(cli.package)
    if bundled is not None and bundled.origin is not None:
        places.append(str(Path(bundled.origin).parent / cli.path))
    found = next((place for place in places if place and os.access(place, os.X_OK)), None)
    return None if found is None else Path(found).resolve()


def fetch(cli: Cli, directory: Path) -> Path:
    """Put the program and what is beside it into ``directory``; returns the program.

    Raises:
        OSError: It cannot be had; the text says why.

    """
    if cli.is_of_npm:
        command = ["npm", "pack", "--silent", f"--pack-destination={directory}", cli.distribution]
    else:
        # The environment of this interpreter may have no pip; the one it was made from has.
        python = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--retries=1", f"--dest={directory}", cli.distribution]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [*directory.glob("*.whl"), *directory.glob("*.tgz")]
    if done.returncode != 0 or len(archives) != 1:
        last = (done.stderr.strip().splitlines() or [f"{command[0]} says nothing"])[-1]
        raise OSError(f"{cli.distribution} cannot be downloaded: {last}")
    if cli.is_of_npm:
        with tarfile.open(archives[0]) as archive:
            archive.extractall(directory)
    else:
        with zipfile.ZipFile(archives[0]) as wheel:
            wheel.extractall(directory)
    archives[0].unlink()
    program = directory / cli.package / cli.path
    for path in program.parent.iterdir():  # a wheel's own modes are lost; programs beside it are started by it
        if path.is_file():
            path.chmod(0o755)
    return program
