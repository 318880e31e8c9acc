"""The side of install and uninstall that is about the service: who owns an instance's state, and what runs it.

On a host where the package is installed an instance's state belongs to the daemons' user, and root writes none of it:
what install stores it stores with that user's rights, so a daemon that was taken over can lay no trap for it (a link
where a file should be). Root makes the one directory, below a directory of its own, and starts the unit.

========================  =====================================================================================
what an earlier run left  what this one does
========================  =====================================================================================
no state directory        makes it for the daemons' user
one that root owns        gives it and all in it to the daemons' user, the directory itself last: until that is
                          done it is still root's, so a run that is interrupted is completed by the next
one that the user owns    leaves it alone
unit not enabled          enables and starts it
unit enabled, not active  starts it
unit active               restarts it when this run changed something, which no task notices
========================  =====================================================================================
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.system import files, paths, services, users

Say = Callable[[str], None]
#: Directories of further links to releases, besides the one in force (agentina/updates/releases.py).
_LINKS: Final = ("previous", "trials")


def is_managed(layout: paths.Layout) -> bool:
    """Whether systemd runs the instances of this layout."""
    return layout.is_system and services.runs_here() and services.has_template()


def owner_of(layout: paths.Layout) -> pwd.struct_passwd | None:
    """The user whom state belongs to; None: whoever runs this."""
    return users.find(services.USER) if is_managed(layout) and os.geteuid() == 0 else None


def make_state(instance: paths.InstancePaths, owner: pwd.struct_passwd | None) -> None:
    """Make the state directory, the owner's.

    Raises:
        AgentinaError: ``STATE_UNWRITABLE``, ``DISK_FULL``.

    """
    try:
        instance.layout.state_directory.mkdir(parents=True, exist_ok=True)
        instance.state.mkdir(mode=0o700, exist_ok=True)
        if owner is not None and instance.state.lstat().st_uid == 0:
            _give_away(instance.state, owner)
    except OSError as error:
        raise files.from_os_error(error, instance.state) from error


def _give_away(state: Path, owner: pwd.struct_passwd) -> None:
    """Give a tree of root's to ``owner``. Nobody else can have put anything into it: its top is closed to them."""
    for _, directories, names, descriptor in os.fwalk(state, topdown=False, follow_symlinks=False):
        for name in (*directories, *names):
            os.chown(name, owner.pw_uid, owner.pw_gid, dir_fd=descriptor, follow_symlinks=False)
    os.chown(state, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    files.sync_directory(state.parent)


def run(instance: paths.InstancePaths, *, changed: list[str], say: Say) -> None:
    """Have the unit enabled and running with the present configuration; adds to ``changed`` what it did.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    unit = services.unit_of(instance.name)
    if services.is_active(instance.name) and services.is_enabled(instance.name):
        if changed:
            say(f"Restarting {unit} …")
            services.restart(instance.name)
        return
    say(f"Starting {unit} …")
    services.enable(instance.name)
    services.start(instance.name)
    changed.append(f"enabled and started {unit}")


def stop(instance: paths.InstancePaths) -> None:
    """Stop the instance for good, with an update that is under way.

    Raises:
        AgentinaError: ``SERVICE_FAILED``.

    """
    _stop_updater(instance)
    # Its end brings the stable unit back, which is stopped next.
    services.try_order("stop", services.trial_of(instance.name))
    services.disable(instance.name)
    # That start may have called the updater again.
    _stop_updater(instance)


def _stop_updater(instance: paths.InstancePaths) -> None:
    for kind in ("path", "service"):
        services.try_order("stop", f"agentina-update@{instance.name}.{kind}")


def check_alive(instance: paths.InstancePaths) -> None:
    """Raise ``SERVICE_FAILED`` when the unit ended for good: there is nothing to wait for then.

    Raises:
        AgentinaError: As said.

    """
    if services.has_failed(instance.name):
        unit = services.unit_of(instance.name)
        state = services.state_of(instance.name)
        raise errors.SERVICE_FAILED(what=f"start {unit}", unit=unit, problem=f"the unit is {state}")


def remove_state(instance: paths.InstancePaths) -> None:
    """Delete everything of an instance but its configuration. What tasks left may be any user's, or nobody's."""
    for directory in (instance.state, instance.socket.parent):
        if os.geteuid() == 0 and instance.layout.is_system:
            # Not files.remove_tree: that one changes permissions by name, and root would follow a link there.
            shutil.rmtree(directory, ignore_errors=True)
        elif directory.exists():
            files.remove_tree(directory)
    for link in (instance.release, *(instance.layout.software_directory / name / instance.name for name in _LINKS)):
        with contextlib.suppress(OSError):
            link.unlink()
    shutil.rmtree(instance.updates, ignore_errors=True)
    instance.log.unlink(missing_ok=True)
    if instance.state.exists():
        raise errors.STATE_UNWRITABLE(path=str(instance.state), problem="not everything in it could be deleted")
