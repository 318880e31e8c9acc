"""A fleet that obeys orders for another release as hosts do, and the rollout over it, without any I/O.

Each host acts once on each order's id and reports what became of it; what a release does to it is a word of
:data:`BEHAVIOURS`. Time passes only when told to.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Final

import msgspec

from agentina.control.rollouts import figures, model, rules, spread
from agentina.protocol import wire
from agentina.protocol.states import State

OLD: Final = "1.0.0"
NEW: Final = "1.1.0"
#: good: it works; bad: rolled back by itself; late: promoted, and rolled back at the next turn; inconclusive: the first
#: time; refused: the first time; deaf: the order is never obeyed; dead: never heard of again; slow: works, after three
#: turns; lazy: works, but says nothing of it for two turns.
BEHAVIOURS: Final = ("good", "bad", "late", "inconclusive", "refused", "deaf", "dead", "slow", "lazy")


@dataclasses.dataclass
class Host:
    """One agent."""

    number: int
    machine: str
    zone: str = ""
    behaviour: str = "good"
    version: str = OLD
    is_online: bool = True
    is_dead: bool = False
    is_leaving: bool = False
    pinned: str = ""
    window: str = ""
    report: wire.UpdateReport | None = None
    heard_ms: int = 0
    totals: figures.Figures = dataclasses.field(default_factory=figures.Figures)
    past: figures.Sample = dataclasses.field(default_factory=figures.Sample)
    #: Ids of orders it acted on, and how often it installed the new release.
    acted: list[str] = dataclasses.field(default_factory=list)
    installs: int = 0
    #: Turns until an update that is under way is done.
    left: int = 0
    #: An order that is taken and that the journal does not have yet, and the turns until it has.
    wish: wire.UpdateOrder | None = None
    unsaid: int = 0

    def turn(self, order: wire.UpdateOrder | None, now_ms: int) -> None:
        """A heartbeat with its answer, and what follows from it."""
        if not self.is_online or self.is_dead:
            return
        self.heard_ms = now_ms
        if self.behaviour == "late" and self.version == NEW and self.report is not None:
            self._roll_back("bad", "crashed")
        if order is None or order.id in self.acted or self.behaviour == "deaf":
            self._go_on()
            return
        if order.action == "rollback" and not self._is_on(order.version):
            self._go_on()
            return
        self.acted.append(order.id)
        if order.action == "rollback":
            self.report = wire.UpdateReport(id=order.id, version=order.version, state="rolled-back", verdict="good")
            self.version, self.left = OLD if self.version == order.version else self.version, 0
            return
        self._install(order)

    def _install(self, order: wire.UpdateOrder) -> None:
        self.report = wire.UpdateReport(id=order.id, version=order.version, state="requested")
        if self.behaviour == "refused":
            self.report = msgspec.structs.replace(self.report, state="refused", reason="STATE_CONFLICT")
        elif self.behaviour == "inconclusive":
            self._roll_back("inconclusive", "control-plane-away")
        elif self.behaviour == "bad":
            self._roll_back("bad", "crashed")
        elif self.behaviour == "slow":
            self.left = 3
        elif self.behaviour == "lazy":
            self.report, self.wish, self.unsaid, self.behaviour = None, order, 2, "slow"
        else:
            self._promote()
        if self.behaviour in {"refused", "inconclusive"}:
            self.behaviour = "good"

    def _is_on(self, version: str) -> bool:
        """Whether it runs the version, or is on the way to it as far as its journal knows."""
        report = self.report
        return self.version == version or (
            report is not None and report.state == "requested" and report.version == version
        )

    def _go_on(self) -> None:
        if self.wish is not None:
            self.unsaid -= 1
            if not self.unsaid:
                self._install(self.wish)
                self.wish = None
            return
        self.left -= self.left > 0
        if self.report is not None and self.report.state == "requested" and not self.left:
            self._promote()

    def _promote(self) -> None:
        assert self.report is not None
        self.version, self.is_dead = self.report.version, self.behaviour == "dead"
        self.installs += 1
        self.report = msgspec.structs.replace(self.report, state="promoted", verdict="good")

    def _roll_back(self, verdict: str, reason: str) -> None:
        assert self.report is not None
        self.version = OLD
        changes = {"state": "rolled-back", "verdict": verdict, "reason": reason}
        self.report = msgspec.structs.replace(self.report, **changes)

    def fact(self, now_ms: int) -> model.Fact:
        """What the control plane knows of it."""
        there = self.is_online and not self.is_dead
        return model.Fact(
            place=spread.Place(agent=self.number, host=self.machine, zone=self.zone, tasks=self.past.figures.ended),
            name=f"{self.machine}/{self.number}", version=self.version, is_online=there,
            is_leaving=self.is_leaving,
            is_silent=not there and now_ms - self.heard_ms > 60_000, heard_ms=self.heard_ms, report=self.report,
            pinned=self.pinned, window=self.window, totals=self.totals, past=self.past,
        )  # fmt: skip

    def work(self, count: int, seconds: float, *, failed: int = 0) -> None:
        """Finish tasks."""
        for number in range(count):
            state = State.FAILED if number < failed else State.SUCCEEDED
            self.totals = self.totals.with_task(state, seconds)


class Fleet:
    """Hosts and the rollout over them, as the database has it."""

    def __init__(self, hosts: list[Host], plan: model.Plan) -> None:
        self.hosts = {host.number: host for host in hosts}
        self.now_ms = 1_800_000_000_000
        self.rollout = model.Rollout(public_id="roll_1", plan=plan)
        self.members = {host.number: model.Member(agent=host.number) for host in hosts}
        self.lines: list[str] = []
        for number, host in self.hosts.items():
            host.heard_ms = self.now_ms
            marked = {"mark": host.totals, "mark_ms": self.now_ms} if host.is_online else {}
            self.members[number] = msgspec.structs.replace(self.members[number], **marked)

    def state(self) -> model.State:
        return self.rollout.state

    def facts(self) -> dict[int, model.Fact]:
        return {number: host.fact(self.now_ms) for number, host in self.hosts.items()}

    def decide(self, elapsed: float = 0.0) -> rules.Decision:
        return rules.decide(self.rollout, self.members.values(), self.facts(), now_ms=self.now_ms, elapsed=elapsed)

    def apply(self, decision: rules.Decision) -> None:
        turns_back = decision.rollout.state is model.State.ROLLING_BACK and decision.rollout.state is not self.state()
        self.rollout = decision.rollout
        self.members.update(decision.members)
        self.lines += [line.text for line in decision.lines]
        self.call_back()
        if turns_back:
            self.apply(self.decide(0.0))

    def abort(self, reason: str = "told to", *, told: int | None = None) -> None:
        """An operator's decision; ``told``: so many hear of it before the control plane is killed."""
        self.rollout = rules.halt(self.rollout, reason=reason)
        self.call_back(told)

    def call_back(self, most: int | None = None) -> None:
        if self.rollout.state is model.State.ROLLING_BACK:
            told = itertools.islice(rules.called_back(self.members.values(), now_ms=self.now_ms), most)
            self.members.update({member.agent: member for member in told})

    def heartbeats(self) -> None:
        for number, host in self.hosts.items():
            host.turn(model.order(self.rollout, self.members[number]), self.now_ms)

    def turn(self, seconds: float = 10.0) -> None:
        """All hosts send a heartbeat, time passes, and the duty decides."""
        self.heartbeats()
        self.now_ms += round(seconds * 1000)
        self.call_back()
        self.apply(self.decide(seconds))

    def turns(self, count: int, seconds: float = 10.0) -> None:
        for _ in range(count):
            self.turn(seconds)

    def running(self, version: str) -> set[int]:
        return {number for number, host in self.hosts.items() if host.version == version}

    def standing(self, standing: model.Standing) -> set[int]:
        return {number for number, member in self.members.items() if member.standing is standing}
