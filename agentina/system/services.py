"""systemd, asked through ``systemctl``: is it here, is our unit here, start and stop an instance."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from agentina import errors

#: The template unit that the package installs.
TEMPLATE: Final = "agentina@.service"
_UNIT_DIRECTORIES: Final = ("etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_TIMEOUT: Final = 90.0
_QUOTED: Final = 300


def runs_here() -> bool:
    """Whether PID 1 is systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def has_template(root: Path = Path("/")) -> bool:
    """Whether the unit template is installed."""
    return any((root / directory / TEMPLATE).is_file() for directory in _UNIT_DIRECTORIES)


def unit_of(instance: str) -> str:
    """The unit that runs an instance."""
    return f"agentina@{instance}.service"


def is_active(instance: str) -> bool:
    """Whether the instance's unit runs."""
    return _systemctl("is-active", "--quiet", unit_of(instance)).returncode == 0


def enable(instance: str) -> None:
    """Start the instance now and at every boot; returns when the unit has started.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    _checked("enable", "--now", unit_of(instance))


def restart(instance: str) -> None:
    """Restart the instance's unit, which leaves its tasks alone.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    _checked("restart", unit_of(instance))


def disable(instance: str) -> None:
    """Stop the instance and forget to start it at boot. A unit that is not there is fine.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    _checked("disable", "--now", unit_of(instance))


def _checked(*arguments: str) -> None:
    done = _systemctl(*arguments)
    if done.returncode:
        said = " ".join(done.stderr.split())[:_QUOTED] or f"systemctl ended with {done.returncode}"
        raise errors.SERVICE_FAILED(what=" ".join(arguments), unit=arguments[-1], problem=said)


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemctl", "--no-ask-password", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.SERVICE_FAILED(what=" ".join(arguments), unit=arguments[-1], problem=str(error)) from error
