"""What a rollout is made of: its plan, how far it is, and each agent's part in it. Pure data.

What there is one of for each agent is kept from the garbage collector (``gc=False``): it has no cycles, and with ten
thousand agents the collector would hold the event loop up for longer than everything else.

Times ending in ``_ms`` are wall clock milliseconds of the control plane; ``_seconds`` are durations.
"""

from __future__ import annotations

import enum
import math
from typing import Annotated, Final, Literal

import msgspec

from agentina.control.rollouts import figures, spread
from agentina.protocol import settings, wire

#: Longest sentence kept as a reason, in characters.
MAX_REASON: Final = 500


class State(enum.Enum):
    """How far a rollout is; docs/explanation/rollouts.md has the table."""

    #: Hands out orders, or watches those who have the release.
    RUNNING = "running"
    #: An operator stopped it for a while: no orders, but the gates are watched.
    PAUSED = "paused"
    #: Halted by a gate or aborted by an operator: whoever was changed goes back.
    ROLLING_BACK = "rolling-back"
    #: Everybody who is there has it. Runs on when agents that were away come back.
    COMPLETED = "completed"
    #: Everybody who is there has left it.
    ROLLED_BACK = "rolled-back"


#: States in which no other rollout may choose the same agents.
ACTIVE: Final = frozenset({State.RUNNING, State.PAUSED, State.ROLLING_BACK})


class Standing(enum.Enum):
    """An agent's part in a rollout."""

    #: Not asked, or not any more.
    PENDING = "pending"
    #: It ran the version before the rollout came to it; the rollout never touches it.
    CURRENT = "current"
    #: Told to upgrade.
    ORDERED = "ordered"
    #: Runs it.
    UPDATED = "updated"
    #: Has left it by itself: the version is bad there.
    FAILED = "failed"
    #: Told to upgrade, or upgraded, and not heard of since.
    SILENT = "silent"
    #: Told to leave the version.
    RETURNING = "rolling-back"
    #: Has left it because it was told to.
    RETURNED = "rolled-back"


#: Standings of agents that a rollout has changed, or may have.
CHANGED: Final = frozenset({Standing.ORDERED, Standing.UPDATED, Standing.FAILED, Standing.SILENT})


#: Standings in which an agent may be told something.
TOLD: Final = frozenset({Standing.ORDERED, Standing.SILENT, Standing.RETURNING})


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asked for. It never changes."""

    #: Of the release, or of the settings.
    version: str
    #: A release, or settings for the hosts (:mod:`agentina.protocol.settings`), which follow the same rules.
    kind: Literal["release", "configuration"] = "release"
    settings: settings.Settings = settings.Settings()
    #: Agents in the first stage.
    canary: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    #: How long the first stage is watched.
    soak_seconds: float = 86_400.0
    #: Share of the rollout's agents in each further stage, in percent.
    batch_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 25.0
    #: How long each further stage is watched.
    watch_seconds: float = 3600.0
    #: Agents of further stages that may fail, in percent; of the canaries none may.
    tolerance_percent: Annotated[float, msgspec.Meta(ge=0, le=50)] = 5.0
    #: How long an agent may take to begin and end its update before the others no longer wait for it.
    patience_seconds: float = 3600.0
    #: Maintenance window (:mod:`agentina.protocol.windows`) in which upgrades are ordered.
    window: str = ""

    def size(self, stage: int, agents: int) -> int:
        """Most agents of a stage, of a rollout with so many."""
        return self.canary if stage == 1 else max(1, math.ceil(agents * self.batch_percent / 100))

    def seconds(self, stage: int) -> float:
        """How long a stage is watched."""
        return self.soak_seconds if stage == 1 else self.watch_seconds


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rollout is."""

    #: For people and orders, for example ``roll_4h7k0m2p9xqz``.
    public_id: str
    plan: Plan
    state: State = State.RUNNING
    #: 1: the canaries; 2 and on: batches.
    stage: int = 1
    #: ``filling``: orders are given; ``watching``: all of the stage have it, and time must pass.
    phase: Literal["filling", "watching"] = "filling"
    #: Seconds of the watch so far. Only time in which the control plane looked counts.
    watched_seconds: float = 0.0
    #: Why it was halted, aborted or paused.
    reason: str = ""
    #: The gate that halted it; empty: none did.
    gate: str = ""
    #: A newer rollout took its agents over: it does not run on for those who come back.
    superseded: bool = False


class Member(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An agent's part in a rollout."""

    #: Row id.
    agent: int
    standing: Standing = Standing.PENDING
    #: The stage it was changed in; 0: none.
    stage: int = 0
    #: Orders to upgrade so far; it names the order.
    attempt: int = 0
    #: When it came to its standing.
    since_ms: int = 0
    #: Not asked again before.
    not_before_ms: int = 0
    #: Why it stands there, for people.
    reason: str = ""
    #: What it ran before.
    previous: str = ""
    #: An operator, or its host, takes it out of this rollout.
    skipped: bool = False
    #: Its figures when the comparison began, and when that was; None: it takes no part.
    mark: figures.Figures | None = None
    mark_ms: int = 0
    #: What it did before it was changed.
    past: figures.Sample = figures.Sample()


class Fact(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of an agent now."""

    place: spread.Place
    #: For people: host and instance.
    name: str
    #: The release it runs, or the settings that hold there.
    version: str
    is_online: bool
    #: Not heard of for so long that something is wrong.
    is_silent: bool
    #: Its host said that it takes no new work; it may be about to go away.
    is_leaving: bool = False
    is_quarantined: bool = False
    #: Its host takes no settings from here.
    is_closed: bool = False
    #: When it was last heard of.
    heard_ms: int = 0
    report: wire.UpdateReport | None = None
    #: Versions an operator, and its host, hold it to; empty: none.
    pinned: str = ""
    host_pinned: str = ""
    #: Its host's maintenance window.
    window: str = ""
    #: All it ever did, and what it did lately.
    totals: figures.Figures = figures.Figures()
    past: figures.Sample = figures.Sample()


def order(rollout: Rollout, member: Member) -> wire.UpdateOrder | None:
    """What the agent is told now; the same for as long as its part does not change."""
    if member.standing not in TOLD:
        return None
    version = rollout.plan.version
    if member.standing is Standing.RETURNING:
        return wire.UpdateOrder(id=order_id(rollout, member), action="rollback", version=version)
    is_open = rollout.state in {State.RUNNING, State.COMPLETED} and not rollout.superseded
    if is_open:
        return wire.UpdateOrder(id=order_id(rollout, member), action="upgrade", version=version)
    return None


def order_id(rollout: Rollout, member: Member) -> str:
    """The name of the present order: another one for each attempt, so that a host acts once on each."""
    way = ".back" if member.standing is Standing.RETURNING else ""
    return f"{rollout.public_id}.{member.attempt}{way}"
