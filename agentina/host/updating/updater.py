"""The updater: root's one-shot that takes an update as far as it goes (agentina-update@.service).

It is started by PID 1 when a daemon left a wish (:mod:`agentina.host.updating.wishes`) or ``pending`` says that
something is under way, also at boot; and by an operator's `agentina upgrade`, which records the wish itself. It holds
the store's lock from beginning to end, so whoever else wants to change releases is refused meanwhile. A failure (disk
full, a unit that cannot be started) ends it with an exit code, and PID 1 starts it again a while later.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.host.instance import config
from agentina.host.updating import trials, update_host, wishes
from agentina.protocol import windows
from agentina.system import clock, files, paths
from agentina.updates import engine, journal, releases, versions
from agentina.updates.journal import Reason

_MAX_VERSION: Final = 64
#: Seconds an operator's command or the package's staging may hold the lock.
_PATIENCE: Final = 60.0

_log = logging.getLogger(__name__)


def run(instance: paths.InstancePaths, *, terms: trials.Terms) -> None:
    """Finish what is under way, take a wish, finish that, clean up.

    Raises:
        AgentinaError: It could not go on; what runs is a version that ran before.

    """
    store = releases.Store(instance.layout.software_directory)
    with store.alone(patience_seconds=_PATIENCE):
        file = open_journal(instance)
        host = update_host.SystemdHost(instance, store, terms=terms)
        _finish(file, host)
        wish = wishes.take(instance)
        if wish is not None:
            heed(instance, store, file, wish)
            _finish(file, host)
        clean_up(instance, store)
        _pending(instance).unlink(missing_ok=True)


def open_journal(instance: paths.InstancePaths) -> journal.File:
    """The instance's journal, to write; the caller holds the store's lock."""
    try:
        instance.updates.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise files.from_os_error(error, instance.updates) from error
    file = journal.File(instance.update_journal, clock=clock.SystemClock(), boot_id=clock.boot_id())
    if file.damage is not None:
        _log.error("%s", file.damage, extra={"action": "journal-damaged", "code": file.damage.code})
    return file


def _finish(file: journal.File, host: update_host.SystemdHost) -> None:
    update = engine.drive(file, host)
    if update is not None and update.reason is not None:
        why = journal.explain(update)
        _log.warning("%s was rolled back: %s", update.version, why, extra={"action": "rolled-back"})


# --- wishes ---------------------------------------------------------------------------------------------------------


def running(instance: paths.InstancePaths, store: releases.Store) -> str | None:
    """The version that the instance is bound to: its own, or else the package's. None: that is not known."""
    return _bound(instance, store) or packaged(instance.layout)


def _bound(instance: paths.InstancePaths, store: releases.Store) -> str | None:
    """The release that the instance runs by its link. None: the package's, also where the link leads nowhere."""
    linked = store.linked(instance.name)
    return linked if linked is not None and store.path(linked).is_dir() else None


def packaged(layout: paths.Layout) -> str | None:
    """The version of the package's own release."""
    try:
        text = files.read_bounded(layout.packaged_version, limit=_MAX_VERSION).decode("ascii").strip()
    except (OSError, UnicodeDecodeError, errors.AgentinaError):
        return None
    return text if versions.is_valid(text) else None


def heed(instance: paths.InstancePaths, store: releases.Store, file: journal.File, wish: wishes.Wish) -> None:
    """Record a daemon's wish, or that it is refused. The next :func:`agentina.updates.engine.drive` acts on it."""
    if file.content.knows(wish.id):
        return
    runs = running(instance, store)
    try:
        if wish.action == "rollback":
            if _is_undone(file.content.update, wish.version):
                return
            go_back(instance, store, file, version=wish.version, reason=Reason.ROLLOUT)
            return
        if runs is not None and versions.order(wish.version) < versions.order(runs):
            # Only an operator on the host goes to older releases: they may have holes that a signature does not show.
            raise errors.STATE_CONFLICT(
                what=f"Release {wish.version}", state=f"older than {runs}, which runs", expected="a newer one"
            )
        _check_allowed(instance, wish.version, wall_ms=file.now.wall_ms)
        want(instance, store, file, version=wish.version, id=wish.id, force=False)
    except errors.AgentinaError as error:
        if error.entry in {errors.DISK_FULL, errors.STATE_UNWRITABLE}:
            raise
        refused = journal.refuse(file.content, id=wish.id, version=wish.version, error=error, now=file.now)
        file.record(refused)


def _is_undone(update: journal.Update | None, version: str) -> bool:
    """Whether the latest update was the one to ``version``, and was left: the wish for that may have ended it."""
    return update is not None and update.version == version and update.state is journal.State.ROLLED_BACK


def _check_allowed(instance: paths.InstancePaths, version: str, *, wall_ms: int) -> None:
    """What the host's owner says in its configuration; the control plane knows it, and is not relied on.

    Raises:
        AgentinaError: ``STATE_CONFLICT``, or an input's fault.

    """
    settings = config.load(instance)
    if settings.update_pin not in {"", version}:
        raise errors.STATE_CONFLICT(
            what="This host", state=f"pinned to {settings.update_pin} by its owner", expected=f"release {version}"
        )
    if not windows.parse(settings.update_window).is_open(wall_ms):
        raise errors.STATE_CONFLICT(
            what="This host", state="outside its maintenance window", expected=settings.update_window
        )


def want(
    instance: paths.InstancePaths, store: releases.Store, file: journal.File, *,
    version: str, force: bool, id: str = "",  # noqa: A002 - its name
) -> None:  # fmt: skip
    """Record the wish for a version; without an id it is an operator's.

    Raises:
        AgentinaError: ``STATE_CONFLICT``, ``RELEASE_SKIPPED``, ``NAME_INVALID``, ``DISK_FULL``, ``STATE_UNWRITABLE``.

    """
    if version == running(instance, store) and (file.content.update is None or file.content.update.is_over):
        return
    linked = _bound(instance, store)
    fresh = journal.request(
        file.content, id=id or _own_id(), version=version, linked=linked, now=file.now, force=force
    )  # fmt: skip
    _mark(instance)
    file.record(fresh)


def go_back(
    instance: paths.InstancePaths, store: releases.Store, file: journal.File, *, version: str | None, reason: Reason
) -> None:
    """Record that the last update is to be undone, if it is the one to ``version`` (None: whichever).

    Raises:
        AgentinaError: ``STATE_CONFLICT`` (there is nothing to go back from), ``RELEASE_UNKNOWN``, ``DISK_FULL``, ….

    """
    update = file.content.update
    before = None if update is None else update.before
    if before is not None and not store.path(before).is_dir():
        raise errors.RELEASE_UNKNOWN(what=f"release {before}", where=str(store.releases))
    fresh = journal.leave(file.content, version=version, reason=reason, now=file.now)
    _mark(instance)
    file.record(fresh)


def _own_id() -> str:
    return f"operator-{secrets.token_hex(8)}"


def _pending(instance: paths.InstancePaths) -> Path:
    """Says to PID 1 that an update is not over."""
    return instance.updates / "pending"


def _mark(instance: paths.InstancePaths) -> None:
    files.write_atomic(_pending(instance), b"", mode=0o644)


# --- clean-up -------------------------------------------------------------------------------------------------------


def clean_up(instance: paths.InstancePaths, store: releases.Store) -> None:
    """Delete releases that nobody needs, and what was downloaded for an update that is over."""
    busy: set[str] = set()
    try:
        for name in instance.layout.instances():
            busy |= journal.busy(journal.read(instance.layout.instance(name).update_journal))
        for fate in store.clean(packaged=packaged(instance.layout), busy=busy):
            if not fate.kept_for:
                _log.info("deleted release %s", fate.name, extra={"action": "release-deleted"})
    except (errors.AgentinaError, OSError) as error:
        # Nothing is deleted that is not understood; an update is none the worse for it.
        _log.warning("releases are not cleaned up: %s", error, extra={"action": "clean-up-skipped"})
    with contextlib.suppress(OSError):
        for path in (instance.updates / "downloads").glob("*.tar.gz"):
            path.unlink()
