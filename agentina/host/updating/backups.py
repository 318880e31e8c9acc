"""Who a host is, kept aside while another release is tried: its key and agent id, and its license.

===============================  =======================================================================================
what                             why, or why not
===============================  =======================================================================================
identity (key, agent id, pinned  lost, the host must be activated anew by a person, and its running tasks are nobody's
control plane keys)
license                          without it no work is taken until the control plane sends another
outbox, tasks, session, grace    an older copy would do work twice, or lengthen what is bounded; they are the truth
settings from the control plane  have a journal and a way back of their own (:mod:`agentina.host.remote`)
configuration, policy, root of   the owner's and root's: no release can write them
trust
===============================  =======================================================================================

Root's updater takes the copy before a release may write (:func:`keep`): one file, replaced as a whole, which nobody but
root reads. systemd-tmpfiles deletes it after seven days. The package's base puts it back (agentina_base/restoring.py
has the rules): when an update is undone, in the rescue, and when an operator says so (`agentina rollback --identity`).

===========================================  ===========================================================================
when it is taken                             then
===========================================  ===========================================================================
identity missing, damaged, or its            the earlier copy stays
activation under way
license missing or damaged                   the copy is without
a directory, link, device in their place     like damaged: the daemon is not trusted with what root opens
killed, power cut                            the earlier copy, or the new one; the step is done again
no room                                      the update is rolled back, inconclusive, before the release was tried
the package's base is older than this        none is taken: nothing would delete it, or put it back
===========================================  ===========================================================================
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import Final

import msgspec

from agentina import errors
from agentina.host.instance import identity
from agentina.protocol import signing
from agentina.system import files, paths

#: Largest identity and license, in bytes.
_MAX_FILE: Final = 64 << 10
_MAX_COPY: Final = 256 << 10
#: Seconds the base's program may take.
_SECONDS: Final = 90


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept. ``repr`` hides the key."""

    format: int = 1
    #: When, in milliseconds since 1970: for people.
    taken_ms: int
    #: Before the update to this release.
    version: str
    agent_id: str
    #: By name, as they were.
    files: dict[str, bytes]

    def __repr__(self) -> str:
        return f"Copy(agent_id={self.agent_id!r}, version={self.version!r}, taken_ms={self.taken_ms})"


def keep(instance: paths.InstancePaths, *, version: str, wall_ms: int) -> bool:
    """Take a copy before the update to ``version``; False: there is nothing that is worth one.

    Raises:
        AgentinaError: ``DISK_FULL``, ``STATE_UNWRITABLE``; an earlier copy is as it was.

    """
    if not instance.layout.restore_program.exists():
        return False
    found = _present(instance)
    try:
        who = identity.understand(found.get(instance.identity.name, b""))
    except ValueError:
        return False
    if not who.agent_id:
        return False
    place = instance.identity_copy
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        for leftover in place.parent.glob(".*.tmp"):
            leftover.unlink()
    except OSError as error:
        raise files.from_os_error(error, place) from error
    copy = Copy(taken_ms=wall_ms, version=version, agent_id=who.agent_id, files=found)
    files.write_atomic(place, msgspec.json.encode(copy), mode=0o600)
    return True


def forget(instance: paths.InstancePaths) -> None:
    """Delete the copy: the host was activated anew, and is not who it was."""
    with contextlib.suppress(OSError):
        instance.identity_copy.unlink()


def read(instance: paths.InstancePaths) -> Copy | None:
    """The copy; None: there is none that is understood."""
    try:
        return msgspec.json.decode(files.read_bounded(instance.identity_copy, limit=_MAX_COPY), type=Copy)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, errors.AgentinaError):
        return None


def restore(instance: paths.InstancePaths, *, always: bool) -> list[str]:
    """Put back what is damaged; ``always``: also an identity that is another one. Names of the files put back.

    Raises:
        AgentinaError: ``IDENTITY_NOT_RESTORED``.

    """
    program = instance.layout.restore_program
    if not program.exists():
        if always:
            raise errors.IDENTITY_NOT_RESTORED(instance=instance.name, problem="the package is too old for that")
        return []
    command = [str(program), *(["--always"] if always else []), instance.name]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.IDENTITY_NOT_RESTORED(instance=instance.name, problem=str(error)) from error
    if done.returncode:
        problem = done.stderr.decode("utf-8", "replace").strip().removeprefix("agentina: ")
        raise errors.IDENTITY_NOT_RESTORED(instance=instance.name, problem=problem or f"exit code {done.returncode}")
    return done.stdout.decode("ascii", "replace").split()


def _present(instance: paths.InstancePaths) -> dict[str, bytes]:
    """Identity and license as they are, where they are plain files; a license only if it is one."""
    try:
        with (
            files.opened(instance.layout.state_directory, files.DIRECTORY) as top,
            files.opened(instance.name, files.DIRECTORY, within=top) as directory,
        ):
            names = (instance.identity.name, instance.license.name)
            content = {name: files.read_plain(name, within=directory, limit=_MAX_FILE) for name in names}
    except OSError:
        return {}
    found = {name: data for name, data in content.items() if data}
    try:
        msgspec.json.decode(found.get(instance.license.name, b""), type=signing.Signed)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found.pop(instance.license.name, None)
    return found
