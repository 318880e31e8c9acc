"""A daemon's wish for another release: a file of its own, which root's updater takes as if an enemy had written it.

The daemon writes it whole (:func:`write`); a path unit of PID 1 then starts the updater, which takes it away
(:func:`take`): step by step below a directory of root's, following no link, reading a bounded part of a plain
file, and believing nothing that is not in the form of :class:`Wish`. All that a daemon that was taken over can do with
it is ask for a release that is signed and offered, newer than what runs, or for the way back from the last update.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Annotated, Final, Literal

import msgspec

from agentina import errors
from agentina.protocol import inputs
from agentina.system import files, paths
from agentina.updates import versions

_MAX_WISH: Final = 4096

_log = logging.getLogger(__name__)


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The control plane's order (:class:`agentina.protocol.wire.UpdateOrder`), handed on."""

    id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$")]
    action: Literal["upgrade", "rollback"]
    version: Annotated[str, msgspec.Meta(max_length=60)]


def write(instance: paths.InstancePaths, wish: Wish) -> None:
    """Leave a wish for the updater; an earlier one that was not taken is replaced.

    Raises:
        AgentinaError: ``DISK_FULL``, ``STATE_UNWRITABLE``.

    """
    files.write_atomic(instance.wish, msgspec.json.encode(wish))


def take(instance: paths.InstancePaths) -> Wish | None:
    """Take the wish away; None: there is none, or none that can be understood.

    What is lost after this is asked for again: the daemon sees by the journal that nobody acted on it.
    """
    content = _open(instance, remove=True)
    try:
        return None if content is None else _understand(content)
    except errors.AgentinaError as error:
        _log.warning("a wish for an update is not understood: %s", error, extra={"action": "wish-dropped"})
        return None


def recalled(instance: paths.InstancePaths) -> str:
    """The version that the wish which waits takes back; empty: it does not. It goes on waiting."""
    content = _open(instance, remove=False)
    with contextlib.suppress(errors.AgentinaError):
        wish = None if content is None else _understand(content)
        return wish.version if wish is not None and wish.action == "rollback" else ""
    return ""


def _open(instance: paths.InstancePaths, *, remove: bool) -> bytes | None:
    """What the daemon left; None: nothing."""
    try:
        top = os.open(instance.layout.state_directory, files.DIRECTORY)
    except OSError:
        return None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, top)
        try:
            directory = os.open(instance.name, files.DIRECTORY, dir_fd=top)
        except OSError:
            return None
        stack.callback(os.close, directory)
        content = files.read_plain(instance.wish.name, within=directory, limit=_MAX_WISH)
        if content is not None and remove:
            _remove(instance.wish.name, directory)
    return content


def _remove(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=directory)


def _understand(content: bytes) -> Wish:
    wish = inputs.decode(content, Wish, "wish", limit=_MAX_WISH)
    versions.check(wish.version)
    return wish
