"""How this instance stands: what holds work back, what needs attention, what the host is like. For polls and people."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from agentina import errors
from agentina.host import admission
from agentina.host.instance import config, grace, identity, outbox, policy, session
from agentina.host.leaving import departure
from agentina.host.updating import orders
from agentina.host.work import gates, tasks
from agentina.protocol import jobs, licensing, local, signing, units, wire
from agentina.system import clock, files, paths, pressure

#: Seconds a look at the host's memory and pressure is good for.
_FRESH_SECONDS: Final = 0.25
_MAX_DRAIN: Final = 4096

_log = logging.getLogger(__name__)


class Standing:
    """The facts of one instance that several loops and the local socket need."""

    def __init__(
        self,
        instance: paths.InstancePaths,
        settings: config.HostConfig,
        who: identity.Identity,
        *,
        sessions: session.Session,
        reports: outbox.Outbox,
        held: tasks.Tasks,
        offline: grace.Grace,
        leaving: departure.Departure,
        updates: orders.Orders,
        now_ms: Callable[[], int],
        clocks: clock.Clock,
    ) -> None:
        """Collect what decisions are made from; ``now_ms`` is the control plane's time as far as it is known."""
        self._instance = instance
        self._settings = settings
        self._identity = who
        self._session = sessions
        self._outbox = reports
        self._tasks = held
        self._grace = offline
        self._departure = leaving
        self._updates = updates
        self._now_ms = now_ms
        self._clock = clocks
        self._facts: wire.HostFacts | None = None
        self._facts_until = 0.0
        self._policy: policy.Policy | None = None
        self._drain_file = instance.state / "drain"
        #: Why the owner wants no new work here; None: not drained locally.
        self.drain_reason: str | None = self._read_drain()
        #: The license, or why there is none.
        self.license: licensing.License | None = None
        self.license_error: errors.AgentinaError | None = None
        self.policy_error: errors.AgentinaError | None = None
        #: Damage found at start.
        self.damage: list[errors.AgentinaError] = []
        #: Why the gateway cannot be used; None: it can, or there is none.
        self.gateway: errors.AgentinaError | None = None
        #: Somebody has looked at it since the start.
        self.is_gateway_known = False
        self._limits = self._read_limits()
        self.load_license()
        self.load_policy()

    # --- what may change while running -------------------------------------------------------------------------------

    def use(self, settings: config.HostConfig) -> None:
        """Decide by other settings from now on."""
        self._settings = settings
        self._limits = self._read_limits()

    def load_policy(self) -> None:
        """Read the policy file, at start and on SIGHUP. A broken one refuses all work."""
        try:
            self._policy = policy.load(self._instance.layout.policy_file)
            self.policy_error = None
        except errors.AgentinaError as error:
            self._policy = None
            self.policy_error = error
            _log.error("no work is taken: %s", error, extra={"action": "policy-broken", "code": error.code})

    @property
    def host_policy(self) -> policy.Policy | None:
        """The owner's rules; None: they cannot be understood."""
        return self._policy

    def load_license(self) -> None:
        """Read the license from disk."""
        try:
            self.license = identity.load_license(self._instance, self._identity)
            self.license_error = None
        except errors.AgentinaError as error:
            self.license = None
            self.license_error = error
            _log.error("no work is taken: %s", error, extra={"action": "license-invalid", "code": error.code})
        self._limits = self._read_limits()

    def renew_license(self, signed: signing.Signed) -> None:
        """Take over a license the control plane sent, if it verifies, is this agent's and is newer."""
        try:
            license_ = signing.verify_struct(signed, "license", self._identity.trusted_keys, licensing.License)
            if license_.agent_id != self._identity.agent_id:
                raise errors.LICENSE_INVALID(problem="it belongs to another agent")
            if self.license is not None and license_.issued_ms <= self.license.issued_ms:
                return
            identity.save_license(self._instance, signed)
        except errors.AgentinaError as error:
            _log.error("a renewed license is not used: %s", error, extra={"code": error.code})
            return
        self.load_license()

    def drain(self, reason: str) -> None:
        """Take no new work from now on, over restarts too.

        Raises:
            AgentinaError: It could not be written down; nothing changed.

        """
        files.write_atomic(self._drain_file, reason.encode()[:_MAX_DRAIN])
        self.drain_reason = reason

    def resume(self) -> None:
        """Take work again, unless the host is about to go."""
        self._drain_file.unlink(missing_ok=True)
        self.drain_reason = None
        self._departure.dismiss()

    # --- decisions ---------------------------------------------------------------------------------------------------

    def offer(self) -> admission.Offer:
        """How much work to ask for now."""
        load = admission.Load(
            occupied=self._tasks.occupied,
            promised_bytes=self._tasks.promised_bytes,
            uploading=self._tasks.uploading,
            reports_waiting=self._outbox.waiting,
        )
        return admission.decide(self._limits, load, self.facts(), self.blocks(), gateway=self._gateway_state)

    def blocks(self) -> list[str]:
        """Sentences that forbid any new work."""
        return [problem.message for problem in self.blocking()] + self._wishes()

    def _wishes(self) -> list[str]:
        """Somebody wants no new work here; nothing is wrong."""
        found = []
        if self._session.directives.drain:
            found.append("the control plane drains this agent")
        if self.drain_reason is not None:
            found.append(f"drained on this host{': ' + self.drain_reason if self.drain_reason else ''}")
        if self._departure.reason:
            found.append(self._departure.reason)
        return found

    def blocking(self) -> list[errors.AgentinaError]:
        """Faults that forbid any new work."""
        found = [self._session.refusal, self.policy_error, self.license_error, self._outbox.trouble]
        quarantine = self._session.directives.quarantine
        if quarantine:
            found.append(errors.AGENT_QUARANTINED(reason=quarantine))
        license_ = self.license
        if license_ is not None:
            if self._now_ms() >= license_.expires_ms:
                found.append(errors.LICENSE_EXPIRED(expired_at=clock.show_time(license_.expires_ms)))
            allowed = license_.offline_grace_hours
            away = self._grace.used_seconds / 3600
            if away > allowed:
                found.append(errors.GRACE_EXHAUSTED(hours=f"{away:.1f}", grace_hours=f"{allowed:g}"))
        return [error for error in found if error is not None]

    def check_policy(self, job: jobs.JobSpec) -> list[str]:
        """The host owner's objections to a job."""
        if self._policy is None:
            return ["the policy file of this host cannot be read"]
        return policy.check(self._policy, job)

    # --- showing -----------------------------------------------------------------------------------------------------

    def facts(self) -> wire.HostFacts:
        """How the host is, not older than a quarter of a second."""
        now = self._clock.boot()
        if self._facts is None or not self._facts_until - _FRESH_SECONDS <= now < self._facts_until:
            memory, disk = pressure.memory(), pressure.disk(self._instance.state)
            self._facts_until = now + _FRESH_SECONDS
            self._facts = wire.HostFacts(
                load1=pressure.load1(),
                cpus=pressure.cpus(),
                memory_bytes=memory.total,
                memory_free_bytes=memory.available,
                disk_bytes=disk.total,
                disk_free_bytes=disk.free,
                pressure=wire.Pressure(
                    cpu=pressure.some_avg10("cpu"),
                    memory=pressure.some_avg10("memory"),
                    io=pressure.some_avg10("io"),
                ),
                clock_ms=self._clock.wall_ms(),
                outbox=self._outbox.waiting,
                attention=[problem.code for problem in self.problems()][:64],
                gateway=self._gateway_problem()[: wire.MAX_SHORT],
            )
        return self._facts

    @property
    def why_draining(self) -> str | None:
        """Why somebody wants no new work here; None: nobody does, empty: nobody says why."""
        if self.drain_reason is not None or self._departure.reason:
            return "; ".join(filter(None, [self.drain_reason, self._departure.reason]))
        return "asked by the control plane" if self._session.directives.drain else None

    def problems(self) -> list[local.Problem]:
        """What needs attention, the worst first."""
        found = [_problem(error, severe=True) for error in self.blocking()]
        failure = self._session.failure
        if failure is not None and failure is not self._session.refusal:
            found.append(_problem(failure, severe=True))
        if self._session.trouble is not None:
            found.append(_problem(self._session.trouble, severe=True))
        if self.gateway is not None:
            found.append(_problem(self.gateway, severe=True))
        rolled_back = self._updates.problem()
        if rolled_back is not None:
            found.append(_problem(rolled_back, severe=False))
        damage = [*self.damage, *([self._outbox.damage] if self._outbox.damage is not None else [])]
        found.extend(_problem(error, severe=False) for error in damage)
        disk = pressure.disk(self._instance.state)
        if disk.total and disk.free < self._settings.disk_reserve:
            full = errors.DISK_FULL(path=str(self._instance.state))
            needed = units.show_size(self._settings.disk_reserve)
            message = f"{full.message} {units.show_size(disk.free)} are free; work is taken from {needed} on."
            found.append(local.Problem(code=full.code, severity="warning", message=message, remedy=full.remedy))
        return found

    @property
    def _gateway_state(self) -> jobs.GatewayState:
        if not self._settings.gateway:
            return "none"
        return "unusable" if self.gateway is not None or not self.is_gateway_known else ""

    def _gateway_problem(self) -> str:
        if self.gateway is not None:
            return str(self.gateway.context["problem"])
        return "" if self._settings.gateway else gates.NO_GATEWAY

    @property
    def grace_left_seconds(self) -> float:
        """Seconds until no new work is taken while the control plane is away."""
        if self.license is None:
            return 0.0
        return max(0.0, self.license.offline_grace_hours * 3600 - self._grace.used_seconds)

    def _read_limits(self) -> admission.Limits:
        licensed = self.license.max_concurrent_tasks_per_agent if self.license is not None else 0
        return admission.Limits(
            slots=self._settings.max_concurrent_tasks,
            licensed_slots=licensed,
            memory_reserve=self._settings.memory_reserve,
            disk_reserve=self._settings.disk_reserve,
            max_memory_pressure=self._settings.max_memory_pressure,
            max_io_pressure=self._settings.max_io_pressure,
        )

    def _read_drain(self) -> str | None:
        try:
            return files.read_bounded(self._drain_file, limit=_MAX_DRAIN).decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except (OSError, errors.AgentinaError) as error:
            return f"{self._drain_file} cannot be read: {error}"


def _problem(error: errors.AgentinaError, *, severe: bool) -> local.Problem:
    return local.Problem(
        code=error.code, severity="error" if severe else "warning", message=error.message, remedy=error.remedy
    )
