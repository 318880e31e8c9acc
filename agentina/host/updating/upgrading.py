"""What an operator does about releases on a host: look, upgrade, follow, go back. As root, beside the updater.

The wish is recorded here, under the updater's lock, so that whatever speaks against it is said at once; the work is the
updater's, in its own unit, so that it does not end with the operator's terminal.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

from agentina import errors
from agentina.host.instance import identity, service
from agentina.host.updating import backups, offers, updater
from agentina.system import paths, services, unit_states, users
from agentina.updates import channels, journal, releases, versions
from agentina.updates.journal import Reason

#: Seconds between looks at the updater's journal, a file of another process.
_LOOK_AGAIN = 0.1
#: Seconds that an updater which failed may be away until it is started again, and some.
_MOST_AWAY = 45.0
_CHANNEL = "stable"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What there is to upgrade to."""

    #: The version that the instance is bound to.
    runs: str
    channel: str
    #: What was found; None: the channel has nothing for this machine.
    offer: channels.Release | None

    @property
    def is_news(self) -> bool:
        """Whether it is another version than the one that runs, and newer unless it was named."""
        return self.offer is not None and self.offer.version != self.runs


def look(instance: paths.InstancePaths, version: str | None) -> Look:
    """Ask the repository for ``version``, or for the newest of the channel.

    Raises:
        AgentinaError: ``INSTANCE_UNKNOWN``, ``PRECONDITION_FAILED``, ``RELEASE_UNKNOWN``, ``UPDATE_…``, ….

    """
    require(instance)
    runs = updater.running(instance, releases.Store(instance.layout.software_directory)) or ""
    channel = _channel(instance)
    offers.pin_root(instance)
    with offers.Offers(instance) as offered:
        offer = offered.find(versions.check(version)) if version else offered.newest(channel)
    if version is None and offer is not None and runs and not versions.is_newer(offer.version, runs):
        offer = None
    return Look(runs=runs, channel=channel, offer=offer)


def begin(instance: paths.InstancePaths, version: str, *, force: bool) -> None:
    """Record the wish and start the updater.

    Raises:
        AgentinaError: ``STATE_CONFLICT``, ``RELEASE_SKIPPED``, ``SERVICE_FAILED``, ….

    """
    unit = services.unit_of(instance.name)
    if not unit_states.show(unit).runs and not services.has_failed(instance.name) and not _is_on_trial(instance):
        # A trial would start what somebody stopped.
        raise errors.STATE_CONFLICT(what=unit, state="stopped", expected="running: start it first")
    store = releases.Store(instance.layout.software_directory)
    with store.alone():
        updater.want(instance, store, updater.open_journal(instance), version=version, force=force)
    _start(instance)


def go_back(instance: paths.InstancePaths) -> None:
    """Undo the last update, over or under way, and start the updater.

    Raises:
        AgentinaError: ``STATE_CONFLICT``, ``RELEASE_UNKNOWN``, ``SERVICE_FAILED``, ….

    """
    require(instance)
    # It holds the lock as long as it works; the journal says where it was, and the trial has its own end.
    services.order("stop", _unit(instance))
    store = releases.Store(instance.layout.software_directory)
    with store.alone():
        file = updater.open_journal(instance)
        updater.go_back(instance, store, file, version=None, reason=Reason.OPERATOR)
    _start(instance)


def identity_copy(instance: paths.InstancePaths) -> backups.Copy:
    """Who the host was before the last update.

    Raises:
        AgentinaError: ``IDENTITY_NOT_RESTORED``: there is no copy.

    """
    copy = backups.read(instance)
    if copy is None:
        where = instance.identity_copy.parent
        raise errors.IDENTITY_NOT_RESTORED(instance=instance.name, problem=f"there is no copy of it in {where}")
    return copy


def restore_identity(instance: paths.InstancePaths) -> list[str]:
    """Put the copy back and have the daemon start with it; names of the files that were put back.

    Raises:
        AgentinaError: ``IDENTITY_NOT_RESTORED``, ``STATE_CONFLICT`` (an update is under way), ``SERVICE_FAILED``.

    """
    with releases.Store(instance.layout.software_directory).alone():
        restored = backups.restore(instance, always=True)
        if restored:
            services.try_order("reset-failed", services.unit_of(instance.name))
            if services.is_enabled(instance.name):
                services.order("restart", "--no-block", services.unit_of(instance.name))
    return restored


def follow(instance: paths.InstancePaths, *, say: Callable[[journal.Update], None]) -> journal.Update:
    """Call ``say`` for every state the update comes to, and return it when it is over.

    Raises:
        AgentinaError: ``SERVICE_FAILED``: the updater does not go on with it.

    """
    seen, last = 0, time.monotonic()
    while True:
        update = journal.read(instance.update_journal).update
        assert update is not None
        if len(update.moments) > seen:
            seen, last = len(update.moments), time.monotonic()
            say(update)
        if update.is_over:
            return update
        if time.monotonic() - last > _MOST_AWAY and not unit_states.show(_unit(instance)).runs:
            raise errors.SERVICE_FAILED(what="start", unit=_unit(instance), problem="the updater does not go on")
        time.sleep(_LOOK_AGAIN)


def require(instance: paths.InstancePaths) -> None:
    """Make sure that updates are possible here at all.

    Raises:
        AgentinaError: ``INSTANCE_UNKNOWN``, ``PRECONDITION_FAILED``.

    """
    if not instance.config.exists():
        raise errors.INSTANCE_UNKNOWN(instance=instance.name, path=str(instance.config))
    if not service.is_managed(instance.layout):
        raise errors.PRECONDITION_FAILED(
            problems="releases are changed where the package is installed and systemd runs"
        )
    if os.geteuid() != 0:
        raise errors.PRECONDITION_FAILED(problems="releases are root's: use sudo")


def _start(instance: paths.InstancePaths) -> None:
    services.try_order("reset-failed", _unit(instance))
    services.order("start", "--no-block", _unit(instance))


def _is_on_trial(instance: paths.InstancePaths) -> bool:
    return unit_states.show(services.trial_of(instance.name)).runs


def _unit(instance: paths.InstancePaths) -> str:
    return f"agentina-update@{instance.name}.service"


def _channel(instance: paths.InstancePaths) -> str:
    """The license's channel, as the daemon's user has it; an operator sees and confirms what comes of it."""
    try:
        with users.acting_as(users.find(services.USER)):
            who = identity.load(instance)
            return identity.load_license(instance, who).channel if who is not None else _CHANNEL
    except (errors.AgentinaError, OSError):
        return _CHANNEL
