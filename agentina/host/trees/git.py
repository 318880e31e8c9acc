"""git, run so that it asks nobody, takes its time limit, and runs no code a repository brings along.

Two environments: :func:`network` for reaching a repository, where the host owner's own configuration counts (proxies,
credential helpers, ssh keys), and :func:`sealed` for what a job has touched, where no configuration but ours is read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.system import processes

#: Variables of the daemon that git needs for reaching a repository.
_PASSED: Final = (
    "HOME", "PATH", "SSH_AUTH_SOCK", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "USER", "XDG_CONFIG_HOME",
    "all_proxy", "ALL_PROXY", "http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY",
)  # fmt: skip
_PROTOCOLS: Final = "file:git:http:https:ssh"
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Options for every command: nothing that a repository's content or configuration could name is run.
_OPTIONS: Final = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "core.attributesFile=/dev/null",
    "-c", "core.excludesFile=/dev/null",
    "-c", "core.bigFileThreshold=16m",
    "-c", "core.compression=1",
    "-c", "core.quotePath=true",
    "-c", "gc.auto=0",
    "-c", "maintenance.auto=false",
    "-c", "submodule.recurse=false",
    "-c", "protocol.ext.allow=never",
)  # fmt: skip
_CREDENTIALS: Final = re.compile(r"//[^/@\s]*@")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class GitError(Exception):
    """A git command failed; the text says how, without credentials."""


class TooSlowError(GitError):
    """A git command took longer than it may: it says nothing of what it was to look at."""


def network(configuration: Path) -> dict[str, str]:
    """Environment for reaching a repository; ``configuration`` is the file made by :func:`write_configuration`."""
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return {
        "PATH": _DEFAULT_PATH,
        **passed,
        "LC_ALL": "C.UTF-8",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15",
        "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
        "GIT_CONFIG_GLOBAL": str(configuration),
        "GIT_HTTP_LOW_SPEED_LIMIT": "1",
        "GIT_HTTP_LOW_SPEED_TIME": "60",
    }


def sealed(**paths: Path) -> dict[str, str]:
    """Environment for what a job has touched; ``paths`` are git's own variables without their ``GIT_``."""
    return {
        "PATH": os.environ.get("PATH", _DEFAULT_PATH),
        "LC_ALL": "C.UTF-8",
        "HOME": "/nonexistent",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        **{f"GIT_{name.upper()}": str(path) for name, path in paths.items()},
    }


def configuration() -> str:
    """Content of the global configuration for :func:`network`: the user's own, and no test of who owns a repository.

    A repository on this host may belong to somebody else; the job's author names it on purpose, and only objects are
    read from it.
    """
    own = os.environ.get("GIT_CONFIG_GLOBAL", "~/.gitconfig")
    quoted = own.replace("\\", "\\\\").replace('"', '\\"')
    return f'[include]\n\tpath = "{quoted}"\n[safe]\n\tdirectory = *\n'


def is_commit(text: str) -> bool:
    """Whether ``text`` is the full id of a commit."""
    return _COMMIT.fullmatch(text) is not None


def without_credentials(text: str) -> str:
    """``text`` with the user part of addresses hidden."""
    return _CREDENTIALS.sub("//***@", text)


def command(*arguments: str) -> list[str]:
    """A git command in full, with the options that every one of ours has."""
    return ["git", *_OPTIONS, *arguments]


async def run(
    *arguments: str,
    environment: Mapping[str, str],
    directory: Path,
    timeout_seconds: float,
    output_limit: int = 1 << 20,
    output_file: int | None = None,
    pass_descriptors: Sequence[int] = (),
    tolerated: frozenset[int] = frozenset({0}),
) -> processes.Completed:
    """Run one git command.

    Raises:
        GitError: It failed; ``TooSlowError``: it took too long.
        AgentinaError: ``PRECONDITION_FAILED`` when git is not installed.

    """
    try:
        done = await processes.run(
            command(*arguments),
            environment=environment,
            directory=directory,
            timeout_seconds=timeout_seconds,
            output_limit=output_limit,
            output_file=output_file,
            pass_descriptors=pass_descriptors,
        )
    except FileNotFoundError as error:
        if shutil.which("git", path=environment.get("PATH")) is None:
            raise errors.PRECONDITION_FAILED(problems="git is not installed") from error
        raise GitError(f"{directory} does not exist") from error
    except TimeoutError as error:
        raise TooSlowError(f"git {arguments[0]} took longer than {timeout_seconds:g} s") from error
    if not done.truncated and done.code not in tolerated:
        raise GitError(without_credentials(done.problem) or f"git {arguments[0]} ended with {done.code}")
    return done
