"""What a rollout does next. Pure: :func:`decide` takes what is known now and says what changes.

It is asked again and again, by a background duty. What it says is stored in one transaction before anybody acts on it,
so a crash loses at most a decision, which is then made again. docs/explanation/rollouts.md has the states.

Promises (tests/unit/control/rollouts/test_rules.py holds them for random fleets and histories):

- A stage has at most as many agents as its size, and the next one begins only after the one before was watched.
- Orders to upgrade exist only in ``running`` and ``completed`` rollouts; once ``rolling-back``, never again.
- That a rollout goes back is one decision (:func:`halt`), which changes no member. Each of them is told afterwards
  (:func:`called_back`), some at a time: whoever was not told yet is found by the standing, after a crash as well.
- An agent that is offline, pinned or skipped is never waited for.
- The same facts lead to the same decision, and a decision applied leads to no further one until facts or time change.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from agentina.control.rollouts import figures, gates, members, model, spread
from agentina.protocol import units


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A line of the rollout's timeline."""

    text: str
    #: Set for what the audit keeps as well: ``halt``, ``complete``, ``roll-back-complete``, ``reopen``.
    act: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What changes."""

    rollout: model.Rollout
    #: The members that change, by agent.
    members: Mapping[int, model.Member]
    lines: tuple[Line, ...] = ()


def decide(
    rollout: model.Rollout, known: Iterable[model.Member], facts: Mapping[int, model.Fact], *, now_ms: int,
    elapsed: float, is_withdrawn: bool = False,
) -> Decision:  # fmt: skip
    """The next decision.

    Args:
        rollout: As stored.
        known: Its members, all of them.
        facts: What is known of each.
        now_ms: Wall clock.
        elapsed: Seconds that the control plane looked since the last decision was stored.
        is_withdrawn: No channel of the release repository has the version any more.

    """
    members_by_agent = {member.agent: member for member in known}
    return _Round(rollout, members_by_agent, facts, now_ms).decide(elapsed, is_withdrawn=is_withdrawn)


def halt(rollout: model.Rollout, *, reason: str, gate: str = "") -> model.Rollout:
    """The decision that everybody who was changed goes back, by a ``gate`` or an operator."""
    return msgspec.structs.replace(
        rollout, state=model.State.ROLLING_BACK, reason=reason[: model.MAX_REASON], gate=gate
    )  # fmt: skip


def called_back(known: Iterable[model.Member], *, now_ms: int) -> Iterator[model.Member]:
    """Those members of a rollout that goes back who were not told to, as they are once they are.

    One that failed has left the version by itself; told to leave it, it has nothing to do.
    """
    for member in known:
        if member.standing in model.CHANGED:
            yield msgspec.structs.replace(member, standing=model.Standing.RETURNING, since_ms=now_ms)


class _Round:
    """One decision in the making."""

    def __init__(
        self,
        rollout: model.Rollout,
        known: dict[int, model.Member],
        facts: Mapping[int, model.Fact],
        now_ms: int,
    ) -> None:
        self._rollout = rollout
        self._before = known
        self._members = {agent: member for agent, member in known.items() if agent in facts}
        self._facts = facts
        self._now_ms = now_ms
        self._lines: list[Line] = []

    def decide(self, elapsed: float, *, is_withdrawn: bool) -> Decision:
        """See :func:`decide`."""
        self._follow()
        if self._rollout.state in {model.State.RUNNING, model.State.PAUSED}:
            self._watch_gates(is_withdrawn=is_withdrawn)
        is_closed = self._rollout.superseded or is_withdrawn
        if self._rollout.state is model.State.COMPLETED and not is_closed and self._candidates():
            self._say("agents that were away or are new can have it; the rollout goes on", act="reopen")
            self._change(state=model.State.RUNNING)
            self._begin_stage(self._rollout.stage + 1 if self._is_proved() else 1)
        if self._rollout.state is model.State.RUNNING:
            self._advance(elapsed)
        if self._rollout.state is model.State.ROLLING_BACK:
            self._end_rollback()
        changed = {agent: member for agent, member in self._members.items() if member != self._before[agent]}
        return Decision(rollout=self._rollout, members=changed, lines=tuple(self._lines))

    # --- what agents say ---------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        for agent, member in self._members.items():
            after = members.follow(self._rollout, member, self._facts[agent], self._now_ms)
            if after is member:
                continue
            self._members[agent] = after
            if after.standing in {model.Standing.FAILED, model.Standing.SILENT}:
                self._say(f"{self._facts[agent].name} {after.standing.value}: {after.reason}")

    # --- gates -------------------------------------------------------------------------------------------------------

    def _watch_gates(self, *, is_withdrawn: bool) -> None:
        withdrawn = gates.Finding("withdrawn", f"release {self._rollout.plan.version} was withdrawn")
        for finding in (withdrawn if is_withdrawn else None, self._rollbacks(), self._heartbeats(), *self._work()):
            if finding is None:
                continue
            self._say(f"halted by the gate {finding.gate}: {finding.text}; everybody goes back", act="halt")
            self._rollout = halt(self._rollout, reason=finding.text, gate=finding.gate)
            return

    def _rollbacks(self) -> gates.Finding | None:
        """The version was bad on a canary, or on more agents of the batches than are tolerated."""
        changed = [member for member in self._members.values() if member.stage]
        failed = [member for member in changed if member.standing is model.Standing.FAILED]
        later = sum(member.stage > 1 for member in changed)
        allowed = int(later * self._rollout.plan.tolerance_percent / 100)
        if not any(member.stage == 1 for member in failed) and len(failed) <= allowed:
            return None
        worst = min(failed, key=lambda member: member.since_ms)
        text = f"{units.show_count(len(failed), 'agent')} left {self._rollout.plan.version}, first "
        return gates.Finding("rollbacks", f"{text}{self._facts[worst.agent].name} ({worst.reason})")

    def _heartbeats(self) -> gates.Finding | None:
        """More agents of this stage fell silent than others did over the same time."""
        stage = self._stage_members()
        silent = [member for member in stage if member.standing is model.Standing.SILENT]
        others = [member for member in self._members.values() if _is_other(member)]
        quiet = sum(self._facts[member.agent].is_silent for member in others)
        share = quiet / len(others) if others else 0.0
        tolerance = 0.0 if self._rollout.stage == 1 else self._rollout.plan.tolerance_percent / 100
        if len(silent) <= int((tolerance + share) * len(stage)):
            return None
        first = self._facts[min(silent, key=lambda member: member.since_ms).agent].name
        text = f"{units.show_count(len(silent), 'agent')} of {len(stage)} not heard of since the update, first {first}"
        return gates.Finding("heartbeats", f"{text}; of agents not updated {quiet} of {len(others)}")

    def _work(self) -> list[gates.Finding]:
        samples = work_samples(self._members.values(), self._facts, self._now_ms)
        return gates.judge(updated=samples.updated, past=samples.past, others=samples.others)

    # --- stages ------------------------------------------------------------------------------------------------------

    def _advance(self, elapsed: float) -> None:
        if self._rollout.phase == "filling":
            self._fill()
            return
        if not self._is_shown():
            # They are away, or were taken out: nothing is learned meanwhile. Others take the place of those who left.
            self._change(phase="filling", watched_seconds=0.0)
            self._fill()
            return
        self._change(watched_seconds=self._rollout.watched_seconds + elapsed)
        if self._rollout.watched_seconds >= self._rollout.plan.seconds(self._rollout.stage):
            self._say(f"stage {self._rollout.stage} was watched and did well")
            self._begin_stage(self._rollout.stage + 1)
            self._fill()

    def _is_shown(self) -> bool:
        """Whether an agent of the stage runs the version and is there to show how it does."""
        return any(
            member.standing is model.Standing.UPDATED and self._facts[member.agent].is_online
            for member in self._stage_members()
        )

    def _fill(self) -> None:
        """Order what the stage has room for; when all of it have the version, begin to watch."""
        stage = self._stage_members()
        gone = sum(self._is_gone(member) for member in stage)
        room = self._rollout.plan.size(self._rollout.stage, len(self._members)) - len(stage) + gone
        chosen = self._choose(stage, room) if room > 0 else []
        for agent in chosen:
            self._order(agent)
        if chosen:
            self._say(f"stage {self._rollout.stage}: ordered {units.show_count(len(chosen), 'agent')} to upgrade")
        elif any(self._is_awaited(member) for member in stage):
            return
        elif self._is_shown():
            self._say(f"stage {self._rollout.stage}: watching for "
                      f"{units.show_duration(self._rollout.plan.seconds(self._rollout.stage))}")  # fmt: skip
            self._change(phase="watching", watched_seconds=0.0)
        elif not stage and self._is_complete():
            self._complete()
        elif self._rollout.stage > 1 and stage and not any(self._may_show(member) for member in stage):
            self._say(f"stage {self._rollout.stage}: none of its agents took the release; going on with others")
            self._begin_stage(self._rollout.stage + 1)
            self._fill()

    def _choose(self, stage: list[model.Member], room: int) -> list[int]:
        return spread.choose(
            [self._facts[agent].place for agent in self._candidates()],
            everybody=[fact.place for fact in self._facts.values()],
            changed={member.agent for member in self._members.values() if member.stage},
            stage={member.agent for member in stage},
            most=room,
            one_a_host=self._rollout.stage == 1,
        )

    def _order(self, agent: int) -> None:
        member, fact = self._members[agent], self._facts[agent]
        self._members[agent] = msgspec.structs.replace(
            member, standing=model.Standing.ORDERED, stage=self._rollout.stage, attempt=member.attempt + 1,
            since_ms=self._now_ms, reason="", previous=fact.version, past=fact.past,
        )  # fmt: skip

    def _is_awaited(self, member: model.Member) -> bool:
        """Whether the stage waits for the agent: it was told, is there, and has time left."""
        late_ms = self._now_ms - member.since_ms - 1000 * self._rollout.plan.patience_seconds
        return member.standing is model.Standing.ORDERED and self._facts[member.agent].is_online and late_ms < 0

    def _may_show(self, member: model.Member) -> bool:
        """Whether the agent runs the version and will be back soon, or be missed."""
        return member.standing is model.Standing.UPDATED and not self._is_gone(member)

    def _is_gone(self, member: model.Member) -> bool:
        """Whether the agent said that it leaves, and did."""
        fact = self._facts[member.agent]
        return fact.is_leaving and not fact.is_online

    def _begin_stage(self, number: int) -> None:
        """The comparison begins anew: of those who have the version with those who are there and have not."""
        self._change(stage=number, phase="filling", watched_seconds=0.0)
        for agent, member in self._members.items():
            fact = self._facts[agent]
            compared = member.standing is model.Standing.UPDATED or (
                member.standing is model.Standing.PENDING and fact.is_online
            )
            mark = fact.totals if compared else None
            self._members[agent] = msgspec.structs.replace(member, mark=mark, mark_ms=self._now_ms if compared else 0)

    def _is_complete(self) -> bool:
        """Whether nobody is left who is there and may have it at some time."""
        standings = collections.Counter(member.standing for member in self._members.values())
        if not standings[model.Standing.UPDATED] + standings[model.Standing.CURRENT]:
            return False
        return not any(
            obstacle is None or obstacle.kind is members.Kind.PASSING for _, obstacle in self._obstacles()
        )  # fmt: skip

    def _complete(self) -> None:
        standings = collections.Counter(member.standing for member in self._members.values())
        having = standings[model.Standing.UPDATED] + standings[model.Standing.CURRENT]
        text = f"complete: {units.show_count(having, 'agent')} of {len(self._members)} run {self._rollout.plan.version}"
        self._say(text, act="complete")
        self._change(state=model.State.COMPLETED)

    def _end_rollback(self) -> None:
        if any(member.standing in model.CHANGED for member in self._members.values()):
            return  # they are yet to be told
        waiting = [member for member in self._members.values() if member.standing is model.Standing.RETURNING]
        if any(self._facts[member.agent].is_online for member in waiting):
            return
        away = f"; {units.show_count(len(waiting), 'agent')} that are away go back when they return" if waiting else ""
        self._say(f"rolled back{away}", act="roll-back-complete")
        self._change(state=model.State.ROLLED_BACK)

    def _is_proved(self) -> bool:
        return any(member.standing is model.Standing.UPDATED for member in self._members.values())

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[int]:
        return [agent for agent, obstacle in self._obstacles() if obstacle is None]

    def _obstacles(self) -> Iterable[tuple[int, members.Obstacle | None]]:
        """What stands between each pending agent and its order."""
        for agent, member in self._members.items():
            if member.standing is model.Standing.PENDING:
                yield agent, members.obstacle(self._rollout, member, self._facts[agent], self._now_ms)

    def _stage_members(self) -> list[model.Member]:
        return [member for member in self._members.values() if member.stage == self._rollout.stage]

    def _change(self, **changes: object) -> None:
        self._rollout = msgspec.structs.replace(self._rollout, **changes)

    def _say(self, text: str, *, act: str = "") -> None:
        self._lines.append(Line(text, act))


@dataclasses.dataclass(slots=True)
class WorkSamples:
    """What the gates of work compare."""

    updated: figures.Sample = dataclasses.field(default_factory=figures.Sample)
    past: figures.Sample = dataclasses.field(default_factory=figures.Sample)
    others: figures.Sample = dataclasses.field(default_factory=figures.Sample)


def work_samples(
    known: Iterable[model.Member], facts: Mapping[int, model.Fact], now_ms: int
) -> WorkSamples:  # fmt: skip
    """The samples of the present stage."""
    samples = WorkSamples()
    for member in known:
        fact = facts.get(member.agent)
        # One that is away or takes no work does none, and that is not the release's fault.
        if fact is None or member.mark is None or fact.is_leaving or not fact.is_online:
            continue
        seconds = max(now_ms - member.mark_ms, 0) / 1000
        since = figures.Sample(figures=fact.totals.since(member.mark), agent_seconds=seconds)
        if member.standing is model.Standing.UPDATED:
            samples.updated += since
            samples.past += member.past
        elif _is_other(member):
            samples.others += since
    return samples


def _is_other(member: model.Member) -> bool:
    """Whether the agent was there when the stage began and has not got the version: it is compared with."""
    return member.standing is model.Standing.PENDING and member.mark is not None and not member.attempt
