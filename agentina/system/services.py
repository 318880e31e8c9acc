"""systemd, asked through ``systemctl``: is it here, are our units here, start and stop what belongs to an instance."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from agentina import errors

#: The template units that the package installs.
TEMPLATE: Final = "agentina@.service"
TASK_TEMPLATE: Final = "agentina-task@.service"
#: The user that daemons run as. Members of its group may ask a daemon how it is.
USER: Final = "agentina"
_UNIT_DIRECTORIES: Final = ("etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_POLICY_DIRECTORIES: Final = ("etc/polkit-1/rules.d", "usr/share/polkit-1/rules.d")
_CREDENTIALS: Final = ("LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted")
_RUNS: Final = "--state=active,activating,reloading,deactivating"
_TIMEOUT: Final = 90.0
#: Seconds tasks may take to end: each unit's own time to stop, and some.
_STOP_TIMEOUT: Final = 180.0
_QUOTED: Final = 300


def runs_here() -> bool:
    """Whether PID 1 is systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def has_template(root: Path = Path("/"), *, name: str = TEMPLATE) -> bool:
    """Whether a unit template is installed."""
    return any((root / directory / name).is_file() for directory in _UNIT_DIRECTORIES)


def has_rule(root: Path = Path("/")) -> bool | None:
    """Whether polkit is told what daemons may ask PID 1 for; None: this user may not look."""
    directories = [root / directory for directory in _POLICY_DIRECTORIES]
    if any(any(directory.glob("*agentina*.rules")) for directory in directories):
        return True
    return None if any(path.is_dir() and not os.access(path, os.R_OK | os.X_OK) for path in directories) else False


def version() -> int:
    """Number of the systemd that is installed; 0 when it does not tell."""
    match = re.match(r"systemd (\d+)", call("--version").stdout)
    return int(match[1]) if match else 0


def is_stopping() -> bool:
    """Whether the system is being shut down or restarted (is-system-running in systemctl(1))."""
    if not runs_here():
        return False
    try:
        return call("is-system-running", timeout=1.0).stdout.strip() == "stopping"
    except errors.AgentinaError:
        return False


def unit_of(instance: str) -> str:
    """The unit that runs an instance."""
    return f"agentina@{instance}.service"


def trial_of(instance: str) -> str:
    """The unit that runs a new release of an instance on trial, in the place of the other."""
    return f"agentina-trial@{instance}.service"


def is_active(instance: str) -> bool:
    """Whether the instance's unit runs."""
    return try_order("is-active", "--quiet", unit_of(instance))


def is_enabled(instance: str) -> bool:
    """Whether the instance's unit starts at boot."""
    return try_order("is-enabled", "--quiet", unit_of(instance))


def state_of(instance: str) -> str:
    """The unit's state in systemd's words, such as ``active (running)`` or ``activating (auto-restart)``."""
    said = call("show", "--property=ActiveState,SubState,Result", unit_of(instance)).stdout
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    result = found.get("Result", "success")
    reason = "" if result in {"", "success"} else f", result {result}"
    return f"{found.get('ActiveState', 'unknown')} ({found.get('SubState', '?')}{reason})"


def credentials_of(instance: str) -> set[str]:
    """Names of the credentials that the instance's unit is to be handed (systemd.exec(5)), as its files have them.

    ``systemctl show`` does not tell them in all versions. What ImportCredential= finds is not known before the start.
    """
    found: dict[str, set[str]] = {name: set() for name in _CREDENTIALS}
    for line in call("cat", unit_of(instance)).stdout.splitlines():
        name, _, value = line.partition("=")
        if name in found and value:
            found[name].add(value.partition(":")[0])
        elif name in found:
            found[name].clear()  # an empty one takes those before it back (systemd.unit(5))
    return set().union(*found.values())


def has_failed(instance: str) -> bool:
    """Whether the instance's unit ended and will not be started again."""
    return try_order("is-failed", "--quiet", unit_of(instance))


def enable(instance: str) -> None:
    """Start the instance at every boot.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    order("enable", "--quiet", unit_of(instance))


def start(instance: str) -> None:
    """Start the instance now; returns when it has said that it is ready.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    order("start", unit_of(instance))


def restart(instance: str) -> None:
    """Restart the instance's unit, which leaves its tasks alone.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    order("restart", unit_of(instance))


def disable(instance: str) -> None:
    """Stop the instance and forget to start it at boot. A unit that is not there is fine.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    order("disable", "--quiet", "--now", unit_of(instance))


def task_units(instance: str) -> list[str]:
    """Units of tasks of an instance that run, or are on their way to or from it."""
    pattern = f"agentina-task*@{instance}-S*.service"
    said = call("list-units", "--plain", "--no-legend", _RUNS, pattern).stdout
    return sorted(line.split()[0] for line in said.splitlines() if line.strip())


def stop_tasks(instance: str) -> None:
    """End every task of an instance; returns when they have ended.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    units = task_units(instance)
    if units:
        order("stop", *units, timeout=_STOP_TIMEOUT)


def order(*arguments: str, timeout: float = _TIMEOUT) -> None:
    """Have systemctl do something.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    done = call(*arguments, timeout=timeout)
    if done.returncode:
        said = " ".join(done.stderr.split())[:_QUOTED].rstrip(".") or f"systemctl ended with {done.returncode}"
        raise errors.SERVICE_FAILED(what=" ".join(arguments), unit=arguments[-1], problem=said)


def try_order(*arguments: str, timeout: float = _TIMEOUT) -> bool:
    """The same; whether it worked. Raises only when systemctl cannot be run or does not come back."""
    return call(*arguments, timeout=timeout).returncode == 0


def call(*arguments: str, timeout: float = _TIMEOUT) -> subprocess.CompletedProcess[str]:
    """What systemctl answers, whatever its exit code.

    Raises:
        AgentinaError: ``SERVICE_FAILED``: it cannot be run, or does not come back.

    """
    command = ["systemctl", "--no-ask-password", "--no-pager", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.SERVICE_FAILED(what=" ".join(arguments), unit=arguments[-1], problem=str(error)) from error
