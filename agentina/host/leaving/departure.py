"""Why this host will soon be gone: who says so, and since when. Pure; :mod:`agentina.host.daemon` acts on it.

Several sources speak of it, each at its own level: what it says last is what holds, and saying nothing takes it back.

| source | says it when | takes it back when |
| --- | --- | --- |
| logind | PrepareForShutdown(true), or so it was at the daemon's start | PrepareForShutdown(false): called off |
| the cloud | the metadata service has a notice | the notice is gone (a maintenance event was canceled) |
| a task | PID 1 ended it because the system stops | never: the system goes down |
| PID 1 | SIGTERM to the daemon, and the system stops | never |

What follows: no new work is taken, the control plane hears the reason with a heartbeat that is sent at once, and
`agentina status` shows it. When the end is near, tasks that have not started are given back too, so that another host
has them now and not when a lease has run out, and those that can go on elsewhere are ended, packed and sent. Other
running tasks go on: PID 1 ends them with their grace when it comes to that. Nothing of this is written down. A host
that comes back takes work again, and a restarted daemon asks the sources anew.
"""

from __future__ import annotations

import dataclasses
from typing import Final

#: Longest grace of tasks that go on elsewhere when the end is near. The shortest notice is one of 30 s (Google's); the
#: rest of it is for packing and sending.
GRACE_SECONDS: Final = 10.0
#: Sources.
LOGIND = "logind"
CLOUD = "cloud"
SYSTEM = "system"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """One announcement."""

    #: Ends a sentence that begins with "This host": "will be shut down at …".
    reason: str
    #: Tells one announcement of a source from the next, for :meth:`Departure.dismiss`.
    key: str
    #: Whether it is a matter of minutes; False for a mere warning, which may stay one for days.
    near: bool = True


class Departure:
    """What the sources say at present."""

    def __init__(self) -> None:
        self._notices: dict[str, Notice] = {}
        self._dismissed: set[tuple[str, str]] = set()

    def say(self, source: str, notice: Notice | None) -> bool:
        """Take over what ``source`` says now (None: nothing); whether something follows from it."""
        before = self._heeded()
        if notice is None:
            self._notices.pop(source, None)
        else:
            self._notices[source] = notice
        return self._heeded() != before

    def dismiss(self) -> None:
        """The host's owner wants work all the same: what is announced now counts no more, unless the end is near."""
        self._dismissed.update((source, notice.key) for source, notice in self._notices.items() if not notice.near)

    @property
    def reason(self) -> str:
        """Why no new work is taken; empty: nobody announced anything."""
        return "; ".join(f"this host {notice.reason}" for notice in self._heeded())

    @property
    def near(self) -> bool:
        """Whether the end is a matter of minutes."""
        return any(notice.near for notice in self._heeded())

    def _heeded(self) -> list[Notice]:
        return [notice for source, notice in self._notices.items() if (source, notice.key) not in self._dismissed]
