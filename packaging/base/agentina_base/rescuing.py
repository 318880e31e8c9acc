"""Leave a release that does not start: level 2 of updates, when PID 1 has given up on the daemon's unit.

Standard library only, from the package, never from a release: it has to work when no release does.

===========================================  =======================================================================
what it finds                                what it does
===========================================  =======================================================================
the updater holds the lock                   waits; that one goes back by itself when what it promoted does not start
the unit runs by now                         nothing
it ended with exit code 2                    nothing: its configuration is wrong, which no other release cures
its identity is missing or damaged           puts it back (restoring.py), and goes on below
hardly restarted by PID 1 itself             PID 1 tries again: somebody restarted it so often, it is not the release
bound to a release, and the one before it    binds it to that one; the memory of it is used up, so that the next
is here                                      rescue goes on to the next line
bound to a release, nothing before it        unbinds it: the package's own runs
a link that is not understood                the same
not bound                                    nothing is left to go back to: waits, and lets PID 1 try again
===========================================  =======================================================================

Then PID 1 starts the daemon's unit anew, and the updater, which records what happened here (``rescued``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from agentina_base import directories, launcher, restoring

STATE = "/var/lib/agentina"
#: Seconds the updater may need to see that what it promoted does not start.
_LOCK_SECONDS = 300.0
_LOOK_AGAIN = 0.5
#: Seconds between tries where nothing can be changed any more.
_PAUSE = 30.0
#: Exit code of a daemon that no restart cures (agentina.errors.Exit.USAGE).
_HOPELESS = "2"
#: Automatic restarts from which on it is the release's fault.
_CRASHES = 3
_NOTE_LINES = 20


def main(arguments: list[str]) -> int:
    """Rescue the instance that is named."""
    (instance,) = arguments
    if not instance or not set(instance) <= launcher._NAME:  # noqa: SLF001 - the other half of one program
        return 2
    if os.environ.get("MONITOR_EXIT_STATUS") == _HOPELESS and os.environ.get("MONITOR_EXIT_CODE") == "exited":
        print(f"agentina: {instance} ended with exit code 2; see its log", file=sys.stderr)  # noqa: T201 - the journal
        return 0
    opt = Path(launcher.OPT)
    with _alone(opt / "lock"):
        if not _has_failed(instance):
            return 0
        restored = _restore(instance)
        crashes = _restarts(instance)
        move = go_back(opt, instance) if crashes >= _CRASHES else None
        said = [f"{move[0]} did not start; bound to {move[1]}"] if move is not None else []
        said += [f"put back: {', '.join(restored)}"] if restored else []
        if said:
            _note(Path(STATE) / ".updates" / instance, "; ".join(said), instance)
    if move is None and not restored and crashes >= _CRASHES:
        time.sleep(_PAUSE)  # nothing is left to be awaited but that the host's owner mends something
    _systemctl("reset-failed", f"agentina@{instance}.service")
    _systemctl("start", "--no-block", f"agentina@{instance}.service")
    if move is not None:
        _systemctl("start", "--no-block", f"agentina-update@{instance}.service")
    return 0


def _restore(instance: str) -> list[str]:
    """Put back an identity that is damaged; what was put back."""
    try:
        return restoring.restore(Path(STATE), instance, always=False)
    except (OSError, restoring.RestoringError) as error:
        print(f"agentina: {error}", file=sys.stderr)  # noqa: T201 - the journal
        return []


def go_back(opt: Path, instance: str) -> tuple[str, str] | None:
    """Bind an instance to what is before its present release; from and to, None: there is nothing to go back to."""
    link, previous = opt / "instances" / instance, opt / "previous" / instance
    if not os.path.lexists(link):
        return None
    now, before = _target(link), _target(previous)
    if before == now or not launcher.is_usable(f"{opt}/releases/{before}", launcher.python_tag()):
        before = None
    if before is not None:
        temporary = link.with_name(f".{instance}.rescue.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(f"../releases/{before}")
        temporary.replace(link)
    else:
        link.unlink()
    directories.sync(link.parent)
    with contextlib.suppress(FileNotFoundError):
        previous.unlink()
        directories.sync(previous.parent)
    return now or "a release that is not understood", before or "the package's own release"


def _target(link: Path) -> str | None:
    """The version that a link names; None: none that is one."""
    try:
        text = str(link.readlink())
    except OSError:
        return None
    version = text.removeprefix("../releases/")
    return version if text == f"../releases/{version}" and launcher.is_version(version) else None


@contextlib.contextmanager
def _alone(path: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202 - typing is not imported here
    """Hold the lock of releases; who does not get it goes on all the same: a host without a daemon is worse."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_SECONDS
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOOK_AGAIN)  # a lock of another process
        yield
    finally:
        os.close(descriptor)


def _has_failed(instance: str) -> bool:
    return _systemctl("is-failed", "--quiet", f"agentina@{instance}.service") == 0


def _restarts(instance: str) -> int:
    """How often PID 1 restarted the daemon since somebody started it (systemctl show, NRestarts)."""
    command = ["systemctl", "show", "--property=NRestarts", "--value", f"agentina@{instance}.service"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        return int(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout)
    return _CRASHES


def _note(directory: Path, text: str, instance: str) -> None:
    """Leave word for the updater: what happened, and the last lines of the log. A rescue without it counts as well."""
    command = ["journalctl", "--no-pager", "--output=cat", f"--lines={_NOTE_LINES}"]
    command.append(f"--unit=agentina@{instance}.service")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / ".rescued.tmp"
        temporary.write_text(f"{text}\n{said.stdout}")
        temporary.replace(directory / "rescued")
        (directory / "pending").touch()


def _systemctl(*arguments: str) -> int:
    command = ["systemctl", "--no-ask-password", *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, timeout=60, check=False).returncode
    return 1
