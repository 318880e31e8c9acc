"""Put back who a host is, its key and agent id and its license, as they were before the last update.

Standard library only, from the package: it has to work when no release does. The updater leaves the copy
(agentina/host/updating/backups.py) in a directory of root's before a release is let near the originals;
systemd-tmpfiles deletes it after seven days.

=============================================  =====================================================================
what it finds                                  what it does
=============================================  =====================================================================
no copy, or one that is not understood         nothing: what is there may be all there is
identity whole, of the same agent              leaves it; a license that is missing or not understood is put back
identity whole, of another agent               nothing, unless an operator says so: the host was activated anew
identity of an activation that is under way    the same: its key may be redeemed already
identity missing or not understood             sets it aside, puts back license and then identity
cut off or killed anywhere                     the next one finds the same, or a whole identity
no room, or refused by the system              says so; what is there stays
=============================================  =====================================================================

The originals are in the daemon's own directory. Root looks there without following links, and writes nothing: a process
with the daemon's rights and no others does, which gets the copy by a pipe.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

from agentina_base import directories, launcher

STATE = "/var/lib/agentina"
PROGRAM = "/usr/lib/agentina/restore"
#: Largest copy, and largest of the files in it, in bytes.
_LARGEST = 256 << 10
_SEED_BYTES = 32
#: Identities set aside that are kept.
_KEPT_ASIDE = 3
_FILES = ("license", "identity")  # identity last: with it the work is done
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SECONDS = 30
_SANDBOX = (
    "User=agentina", "Group=agentina", "CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict",
    "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes", "PrivateNetwork=yes", "RestrictNamespaces=yes",
    "MemoryDenyWriteExecute=yes", "SystemCallFilter=@system-service", "MemoryMax=128M", "TasksMax=4",
    f"RuntimeMaxSec={_SECONDS}s", "UMask=0077",
)  # fmt: skip


class RestoringError(Exception):
    """Nothing could be put back; the text says why."""


def main(arguments: list[str]) -> int:
    """``INSTANCE`` puts back what is damaged, ``--always INSTANCE`` also what is another agent's.

    Prints the names of the files that were put back; with none of them there was nothing to do. Exit code 1: it could
    not be done. ``--write`` is the part with the daemon's rights.
    """
    *options, instance = arguments or [""]
    if not instance or not set(instance) <= launcher._NAME or not set(options) <= {"--always", "--write"}:  # noqa: SLF001 - the other half of one program
        return 2
    always = "--always" in options
    try:
        if "--write" in options:
            done = write(Path(STATE) / instance, sys.stdin.buffer.read(_LARGEST + 1), always=always)
        else:
            done = restore(Path(STATE), instance, always=always)
    except (OSError, RestoringError) as error:
        print(f"agentina: {error}", file=sys.stderr)  # noqa: T201 - the caller's, or the journal
        return 1
    print(*done)  # noqa: T201 - its answer
    return 0


# --- rules -----------------------------------------------------------------------------------------------------------


def understand(copy: bytes) -> dict[str, bytes] | None:
    """The files in a copy; None: it is not one with a whole identity."""
    try:
        content = json.loads(copy) if len(copy) <= _LARGEST else {}
        found = {name: base64.b64decode(content["files"][name], validate=True) for name in content["files"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    found = {name: found[name] for name in _FILES if name in found}
    return found if agent(found.get("identity")) else None


def agent(identity: bytes | None) -> tuple[str, str] | None:
    """Key and agent id of an identity; None: it is missing, or not one that a daemon could use.

    The agent id of an activation that is under way is empty.
    """
    content = _object(identity)
    if content is None:
        return None
    seed, name = content.get("seed"), content.get("agent_id")
    try:
        whole = isinstance(seed, str) and len(base64.b64decode(seed, validate=True)) == _SEED_BYTES
    except (ValueError, binascii.Error):
        return None
    if not whole or not isinstance(name, str) or not (name or content.get("pending_token_sha256")):
        return None
    return str(seed), name


def wanted(present: dict[str, bytes | None], copy: dict[str, bytes], *, always: bool) -> list[str]:
    """The files of the copy that are to be put back."""
    whose, whose_copy = agent(present["identity"]), agent(copy["identity"])
    is_others = whose is not None and whose != whose_copy
    if is_others and not always:
        return []
    names = []
    if "license" in copy and (is_others or _object(present["license"]) is None):
        names.append("license")
    if whose != whose_copy:
        names.append("identity")
    return names


def _object(content: bytes | None) -> dict[str, object] | None:
    try:
        found = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# --- root's part -----------------------------------------------------------------------------------------------------


def restore(state: Path, instance: str, *, always: bool) -> list[str]:
    """Put back what is to be put back; names of the files.

    Raises:
        RestoringError: There is no copy although one is wanted, or it could not be put back.
        OSError: Likewise.

    """
    path = state / ".updates" / instance / "backup" / "identity.json"
    try:
        content = read(os.fspath(path), None)
    except FileNotFoundError:
        content = None
    copy = None if content is None else understand(content)
    if copy is None or content is None:
        if always:
            raise RestoringError(f"there is no copy of it in {path.parent}")
        return []
    top = os.open(state, _DIRECTORY)
    try:
        if not wanted(look(instance, top), copy, always=always):
            return []
    finally:
        os.close(top)
    return _hand_over(instance, content, always=always)


def _hand_over(instance: str, copy: bytes, *, always: bool) -> list[str]:
    """Have a process with the daemon's rights write it."""
    settings = (*_SANDBOX, f"ReadWritePaths={STATE}/{instance}")
    command = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"]
    command += [word for setting in settings for word in ("--property", setting)]
    command += [PROGRAM, "--write", *(["--always"] if always else []), instance]
    try:
        done = subprocess.run(command, input=copy, capture_output=True, check=False, timeout=_SECONDS + 30)
    except subprocess.SubprocessError as error:
        raise RestoringError(f"the identity could not be put back: {error}") from error
    if done.returncode:
        raise RestoringError(f"the identity could not be put back: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout.decode("ascii", "replace").split()


# --- the daemon's part -----------------------------------------------------------------------------------------------


def write(state: Path, content: bytes, *, always: bool) -> list[str]:
    """Put files back in the state directory; names of those that were.

    Raises:
        RestoringError: What came is no copy.
        OSError: There is no room, or the system refuses.

    """
    copy = understand(content)
    if copy is None:
        raise RestoringError("the copy is not understood")
    top = os.open(state.parent, _DIRECTORY)
    try:
        names = wanted(look(state.name, top), copy, always=always)
    finally:
        os.close(top)
    for name in names:
        temporary = state / f".{name}.restored.tmp"
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(copy[name])
            file.flush()
            os.fsync(descriptor)
        if name == "identity":
            _set_aside(state)
        temporary.replace(state / name)
        directories.sync(state)
    return names


def _set_aside(state: Path) -> None:
    """Keep what is replaced, should it be wanted after all; the latest few. It stays in its place until it is."""
    aside = state / f"identity.damaged-{time.time_ns():020d}"
    try:
        os.link(state / "identity", aside, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError:
        (state / "identity").rename(aside)  # a directory
    for old in sorted(state.glob("identity.damaged-*"))[:-_KEPT_ASIDE]:
        with contextlib.suppress(OSError):
            old.unlink()


# --- looking ---------------------------------------------------------------------------------------------------------


def look(instance: str, top: int) -> dict[str, bytes | None]:
    """Content of the files as they are now; None: missing, or no plain file of the daemon's.

    Raises:
        OSError: It cannot be seen.

    """
    try:
        directory = os.open(instance, _DIRECTORY, dir_fd=top)
    except FileNotFoundError:
        return dict.fromkeys(_FILES)
    try:
        owner = os.fstat(directory).st_uid
        return {name: _present(name, directory, owner) for name in _FILES}
    finally:
        os.close(directory)


def _present(name: str, directory: int, owner: int) -> bytes | None:
    try:
        return read(name, directory, owner=owner)
    except FileNotFoundError:
        return None
    except RestoringError:
        return b""


def read(name: str, directory: int | None, *, owner: int | None = None) -> bytes:
    """Content of a plain file of ``owner``'s.

    Raises:
        RestoringError: It is something else.
        OSError: It cannot be read.

    """
    try:
        descriptor = os.open(name, _READ, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RestoringError(f"{name}: {error.strerror}") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST or owner not in {None, about.st_uid}:
            raise RestoringError(f"{name} is no file of ours")
        return os.read(descriptor, _LARGEST + 1)
    finally:
        os.close(descriptor)
