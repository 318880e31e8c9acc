"""The daemon's part in updates: it hands the control plane's orders on as wishes, and reports what the journal says.

It changes nothing itself: the journal is root's, and is read anew when the file changed. An order that the journal does
not know yet, and that is not fulfilled, is wished for again after a minute: wishes may be lost, and acting
twice on one is what the journal rules out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final, Literal

import agentina
from agentina import errors
from agentina.host.updating import wishes
from agentina.host.work import anomalies
from agentina.protocol import wire
from agentina.system import clock, paths
from agentina.updates import journal

#: Seconds after which an order that nobody acted on is handed on again.
_AGAIN_SECONDS: Final = 60.0
#: Seconds between looks at the journal, another process's file, while something is about to change there.
_SOON_SECONDS: Final = 1.0
#: None: it was promoted.
_VERDICTS: Final[dict[journal.Verdict | None, Literal["good", "bad", "inconclusive"]]] = {
    None: "good", journal.Verdict.BAD: "bad", journal.Verdict.INCONCLUSIVE: "inconclusive",
}  # fmt: skip
_NOTHING: Final = journal.Journal()
#: Bytes of a failed release's log that go to the control plane.
_MAX_LOG: Final = 6 << 10

_log = logging.getLogger(__name__)


class Orders:
    """Orders and updates of one instance."""

    def __init__(self, instance: paths.InstancePaths, *, clocks: clock.Clock) -> None:
        self._instance = instance
        self._clock = clocks
        self._seen: tuple[int, int] | None = None
        self._journal = _NOTHING
        #: Id of the order that was handed on last, and when.
        self._handed_on: tuple[str, float] = ("", 0.0)
        #: What is said of an order where there is no updater.
        self._refused: wire.UpdateReport | None = None

    def obey(self, order: wire.UpdateOrder | None) -> None:
        """Hand an order on to the updater, unless there is nothing to do. Without one it is refused."""
        if order is None or not self._is_open(order):
            return
        if not self._instance.updates.parent.is_dir():
            self._refuse(order)
            return
        handed_on, when = self._handed_on
        now = self._clock.boot()
        if handed_on == order.id and now < when + _AGAIN_SECONDS:
            return
        self._handed_on = (order.id, now)
        try:
            wishes.write(self._instance, wishes.Wish(id=order.id, action=order.action, version=order.version))
        except errors.AgentinaError as error:
            _log.warning("an order for an update could not be handed on: %s", error, extra={"code": error.code})
            return
        _log.info("asked the updater to %s: %s", order.action, order.version, extra={"action": "update-wished"})

    def report(self) -> wire.UpdateReport | None:
        """How far the latest order is; None: there never was one."""
        return report_of(self._current()) or self._refused

    def _refuse(self, order: wire.UpdateOrder) -> None:
        """Say that nobody here can do it, so that a rollout does not wait."""
        if self._refused is not None and self._refused.id == order.id:
            return
        error = errors.UPDATER_MISSING(version=order.version)
        _log.warning("%s", error, extra={"action": "update-refused", "code": error.code})
        self._refused = wire.UpdateReport(
            id=order.id, version=order.version, state="refused", verdict="inconclusive", reason=error.code,
            detail=error.message, at_ms=self._clock.wall_ms(),
        )  # fmt: skip
        self._handed_on = (order.id, self._clock.boot())

    async def watch(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` when what is reported has changed. Runs until canceled."""
        told = self.report()
        while True:
            await asyncio.sleep(_SOON_SECONDS if self._expects_news(told) else _AGAIN_SECONDS)
            report = self.report()
            if report != told:
                told = report
                tell()

    def _expects_news(self, report: wire.UpdateReport | None) -> bool:
        if report is not None and not report.verdict:
            return True
        handed_on, when = self._handed_on
        return bool(handed_on) and self._clock.boot() < when + _AGAIN_SECONDS

    def problem(self) -> errors.AgentinaError | None:
        """What a person should know of the latest update: that it was bad."""
        update = self._current().update
        if update is None or update.state is not journal.State.ROLLED_BACK or update.reason is None:
            return None
        if update.verdict is not journal.Verdict.BAD:
            return None
        return errors.UPDATE_ROLLED_BACK(
            version=update.version, reason=journal.explain(update), instance=self._instance.name
        )  # fmt: skip

    def raise_problem(self, raising: anomalies.Anomalies) -> None:
        """Raise the latest update as an anomaly if it was bad: once, however often this is called."""
        update, problem = self._current().update, self.problem()
        if update is None or problem is None or update.reason is None:
            return
        raising.report(
            "release", problem.code, problem.message, release=update.version, name=f"update:{update.id}",
            evidence={
                "reason": update.reason.value, "detail": update.detail, "runs": agentina.__version__,
                "log": self._log_of(update.version),
            },
        )  # fmt: skip

    def _log_of(self, version: str) -> str:
        """The end of what a release that failed wrote, as the updater kept it; empty: it did not run."""
        try:
            with (self._instance.updates / "logs" / f"{version}.log").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_LOG))
                return file.read(_MAX_LOG).decode("utf-8", "replace")
        except OSError:
            return ""

    def _is_open(self, order: wire.UpdateOrder) -> bool:
        known = self._current()
        if known.knows(order.id):
            return False
        if order.action == "upgrade":
            return order.version != agentina.__version__
        update = known.update
        is_on_the_way = update is not None and not update.is_over and update.version == order.version
        return order.version == agentina.__version__ or is_on_the_way

    def _current(self) -> journal.Journal:
        path = self._instance.update_journal
        try:
            about = path.stat()
            seen = (about.st_ino, about.st_mtime_ns)
            if seen != self._seen:
                # Replaced as a whole with each record, so it is another file then.
                self._journal = journal.read(path)
                self._seen = seen
        except (OSError, errors.AgentinaError):
            self._journal, self._seen = _NOTHING, None
        return self._journal


def report_of(known: journal.Journal) -> wire.UpdateReport | None:
    """What a journal says of the latest order, for the control plane and for people."""
    update, refused = known.update, known.refused
    if refused is not None:
        return wire.UpdateReport(
            id=refused.id, version=refused.version, state="refused", verdict="inconclusive", reason=refused.code,
            detail=refused.detail[: wire.MAX_DETAIL], at_ms=refused.at_ms,
        )  # fmt: skip
    if update is None:
        return None
    return wire.UpdateReport(
        id=update.id,
        version=update.version,
        state=update.state.value,
        verdict=_VERDICTS[update.verdict] if update.is_over else "",
        reason=update.reason.value if update.reason else "",
        detail=(update.detail or _remark(update))[: wire.MAX_DETAIL],
        at_ms=update.moments[-1].at_ms if update.moments else 0,
    )


def _remark(update: journal.Update) -> str:
    """What a trial could not look at; nothing is held against the release for it."""
    return f"not provable here: {update.unproved}" if update.unproved else ""
