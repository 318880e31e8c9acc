"""The daemon of one instance: wires everything together, runs its loops, and ends quickly when asked to.

Its end never ends a task: tasks are the executor's, and the next daemon finds them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from agentina import __version__, errors
from agentina.client import backoff, link
from agentina.executors import contract
from agentina.executors import registry as executors
from agentina.host import follow, heartbeat, janitor, localapi, poll, remote, reports, standing, status, watchdog
from agentina.host.instance import config, fingerprint, grace, identity, logs, outbox, session
from agentina.host.leaving import departure, preemption, shutdown
from agentina.host.updating import orders, probe
from agentina.host.work import (
    anomalies,
    choices,
    doors,
    gatecheck,
    gates,
    healthwatch,
    intake,
    inventory,
    operations,
    shim,
    tasks,
    uploads,
)
from agentina.protocol import local, units, versions, wire
from agentina.runners import registry as runners
from agentina.system import clock, files, notify, paths, services
from agentina.system import tasks as background

if TYPE_CHECKING:
    from agentina.host.work import shares
    from agentina.runners import contract as runner_contract

#: Seconds the orderly end may take; tasks and reports are safe without it.
_END_SECONDS: Final = 2.0
#: Seconds the last word to the control plane may take.
_LAST_WORD_SECONDS: Final = 1.0
#: Seconds between marks of the offline grace.
_GRACE_SECONDS: Final = 60.0
#: Longest a thread keeps the interpreter from another, in seconds. Commits and clean-up have threads; with the usual
#: 5 ms the event loop would wait longer for one of them than all of a task's way to its start takes.
_SWITCH_SECONDS: Final = 0.0005

_log = logging.getLogger(__name__)


def run(instance: paths.InstancePaths) -> int:
    """Run the daemon until SIGTERM or SIGINT; returns the exit code.

    Raises:
        AgentinaError: It cannot start: ``INSTANCE_UNKNOWN``, ``DAEMON_RUNNING``, ``IDENTITY_DAMAGED``, …

    """
    settings = config.load(instance)
    logs.set_up(instance=instance.name, level=settings.log_level, file=instance.log)
    try:
        who = identity.load(instance)
    except PermissionError as error:
        raise errors.FILE_UNREADABLE(where=str(instance.identity), problem=str(error.strerror)) from error
    if who is None or not who.agent_id:
        raise errors.INSTANCE_UNKNOWN(instance=instance.name, path=str(instance.identity))
    sys.setswitchinterval(_SWITCH_SECONDS)
    with _only_daemon(instance):
        asyncio.run(_run(instance, settings, who))
    return errors.Exit.OK


async def _run(instance: paths.InstancePaths, settings: config.HostConfig, who: identity.Identity) -> None:
    _watch_children_by_pidfd()
    daemon = Daemon(instance, settings, who)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    try:
        await daemon.start()
        notify.send("READY=1", f"STATUS=agent {who.agent_id}")
        # What is here now stays: no collection looks at it again, least of all the last, for which a successor waits.
        gc.freeze()
        await ending.wait()
        _log.info("the daemon ends; tasks go on", extra={"action": "daemon-ending"})
        notify.send("STOPPING=1")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await daemon.end()
    finally:
        try:
            async with asyncio.timeout(_END_SECONDS):
                await daemon.close()
        except TimeoutError:
            _log.warning("the daemon ends before everything was put away; nothing is lost")


class Daemon:
    """All parts of one running instance."""

    def __init__(
        self,
        instance: paths.InstancePaths,
        settings: config.HostConfig,
        who: identity.Identity,
        *,
        executor: contract.Executor | None = None,
        clocks: clock.Clock | None = None,
    ) -> None:
        self._instance = instance
        self._settings = settings
        self._identity = who
        #: What is logged now.
        self._log_level = settings.log_level
        self._clock = clocks or clock.SystemClock()
        self._boot_id = clock.boot_id()
        self._executor = executor or executors.choose(
            settings.executor, state_directory=instance.state, slots=settings.max_concurrent_tasks
        )
        signer = link.Signer(key=who.key, agent_id=who.agent_id, audience=who.control_plane_id)
        self._link = link.Link(settings.control_plane, signer=signer, ca_file=settings.ca_file, clocks=self._clock)
        self._gate_check = gatecheck.GateCheck(settings.gateway)
        self._runners = choices.Runners(self._find_runners)
        self._lock = asyncio.Lock()
        self._departure = departure.Departure()
        self._session = session.Session(self._link, clocks=self._clock)
        self._remote = remote.Remote(
            instance.state / "configuration.json",
            settings,
            agent_id=who.agent_id,
            trusted=who.trusted_keys,
            clocks=self._clock,
        )
        self._orders = orders.Orders(instance, clocks=self._clock)
        self._loops: list[asyncio.Task[None]] = []
        self._parts: list[Callable[[], Awaitable[None]]] = []

    async def start(self) -> None:
        """Take over what is on disk and begin to work.

        Raises:
            AgentinaError: The state directory or the executor cannot be used.

        """
        await self._executor.open()
        self._parts.append(self._executor.close)
        self._parts.append(self._link.close)
        self._outbox = await outbox.Outbox.open(self._instance.outbox, clocks=self._clock)
        self._parts.append(self._outbox.close)
        self._remote.start()
        self._make_workers()
        self._adopt()
        self._make_loops()
        await self._local.open()
        self._parts.append(self._local.close)
        _log.info(
            "agentina %s is ready: agent %s of %s, executor %s",
            __version__, self._identity.agent_id, self._settings.control_plane, self._executor.name,
            extra={"action": "daemon-started"},
        )  # fmt: skip
        self._start_loops()

    async def close(self) -> None:
        """End the loops; the last part made goes first."""
        await background.cancel(*self._loops)
        for close in reversed(self._parts):
            with contextlib.suppress(Exception):
                await close()
        self._parts.clear()

    def reload(self) -> None:
        """Read the policy again, and look which runners there are."""
        self._standing.load_policy()
        self._gates.reload()
        self._gate_check.look()
        _log.info("the policy was read again", extra={"action": "policy-loaded"})
        self._look_for_runners()
        self._reconsider()

    def _look_for_runners(self) -> None:
        if self._runners.look():
            self._session.renew()

    def _on_gateway(self) -> None:
        self._standing.gateway, self._standing.is_gateway_known = self._gate_check.problem, True
        self._look_for_runners()
        self._reconsider()

    def _find_runners(self) -> Mapping[str, runner_contract.Runner]:
        layout = self._instance.layout
        found = runners.load(layout.runners_directory, layout.copies_directory)
        if self._gate_check.problem is not None:
            # AI agents would have no way to their models: they go to other hosts.
            found = {name: runner for name, runner in found.items() if not runner.stream}
        return found

    # --- wiring ------------------------------------------------------------------------------------------------------

    def _make_workers(self) -> None:
        transfers = uploads.Uploads(self._session)
        self._gates = gates.Gates(
            self._settings.gateway,
            executor=self._executor,
            rules=lambda: self._standing.host_policy,
            note=self._note,
            make_shares=self._make_shares,
        )
        self._gates.on_unusable = self._gate_check.look
        self._gate_check.on_changed = self._on_gateway
        self._work = operations.Operations(
            executor=self._executor,
            runners=self._runners,
            cache_directory=self._instance.layout.cache_directory,
            transfers=transfers,
            way_out=self._gates,
            clocks=self._clock,
            boot_id=self._boot_id,
            agent_linger=self._settings.agent_linger,
        )
        self._work.note = self._note
        self._parts.append(self._gates.stop)
        self._work.search_path = shim.search_path(self._instance.state)
        self._tasks = tasks.Tasks(
            self._instance.tasks,
            reports=self._outbox,
            executor=self._executor,
            work=self._work,
            clocks=self._clock,
            boot_id=self._boot_id,
        )
        self.anomalies = anomalies.Anomalies(self._outbox, secrets_of=self._tasks.secrets_of, clocks=self._clock)
        self._parts.append(self.anomalies.close)
        self._gates.findings = self.anomalies
        self._doors = doors.Doors(
            executor=self._executor,
            reports=self._outbox,
            findings=self.anomalies,
            budget=self._gates.budget_left,
            checkpoint=self._work.checkpoint,
            clocks=self._clock,
        )
        self._work.doors = self._doors
        self._work.health = healthwatch.HealthWatch(
            executor=self._executor, findings=self.anomalies, notices=self._doors, nudge=self._gates.nudge,
            clocks=self._clock,
        )  # fmt: skip
        self._parts.append(self._doors.close)
        self._parts.append(self._tasks.close)
        self._janitor = janitor.Janitor(
            self._instance, keep_days=self._settings.keep_failed_days, disk_reserve=self._settings.disk_reserve,
            spare=self._settings.max_concurrent_tasks if self._executor.owns_directories else 0,
        )  # fmt: skip
        self._tasks.on_remove = self._janitor.remove
        self._tasks.reuse = self._janitor.spares.use
        self._probe = probe.Probe(
            self._instance.tasks, executor=self._executor, remove=self._janitor.remove, clocks=self._clock
        )
        self._parts.append(self._probe.close)
        self._follower = follow.Follower(self._tasks, transfers, self._session)
        self._grace = grace.Grace(self._instance.state / "grace", boot_id=self._boot_id, clocks=self._clock)
        self._standing = standing.Standing(
            self._instance,
            self._settings,
            self._identity,
            sessions=self._session,
            reports=self._outbox,
            held=self._tasks,
            offline=self._grace,
            leaving=self._departure,
            updates=self._orders,
            now_ms=self._link.now_ms,
            clocks=self._clock,
        )

    def _make_shares(self) -> shares.Shares:
        from agentina.host.work import shares as made  # noqa: PLC0415 - only tasks with a gateway need it

        return made.Shares(
            self._instance.state,
            sessions=self._session,
            held=lambda: self._tasks.all,
            now_ms=self._link.now_ms,
            clocks=self._clock,
        )

    def _note(self, task_id: str, text: str) -> None:
        self._outbox.report(task_id, "note", detail=text[: wire.MAX_DETAIL])

    def _adopt(self) -> None:
        reader = inventory.Reader(
            self._instance.tasks,
            executor=self._executor,
            trusted=self._identity.trusted_keys,
            boot_id=self._boot_id,
            clocks=self._clock,
        )
        found = reader.read(self._outbox.held, outbox_fresh=self._outbox.fresh)
        self._standing.damage.extend(found.damage)
        if self._remote.damage is not None:
            self._standing.damage.append(self._remote.damage)
        for path in (*found.leftovers, *self._probe.leftovers()):
            self._janitor.remove(path, keep=False)
        for adoption in found.adoptions:
            if not adoption.held:
                self._tasks.hold_again(adoption.entry)
            self._tasks.adopt(adoption.entry, adoption.found, adoption.outcome)
        if found.adoptions:
            count = units.show_count(len(found.adoptions), "task")
            _log.info("found again after the restart: %s", count, extra={"action": "tasks-adopted"})
        self._outbox.held.clear()

    def _make_loops(self) -> None:
        self._heartbeat = heartbeat.Heartbeat(
            self._session,
            self._tasks,
            describe=self._standing.facts,
            drain_reason=lambda: self._standing.why_draining,
            version=__version__,
            update=self._orders.report,
            update_window=self._settings.update_window,
            update_pin=self._settings.update_pin,
            remotely=self._remote,
            clocks=self._clock,
        )
        self._poll = poll.Poll(
            self._session,
            self._tasks,
            offer=self._standing.offer,
            situation=self._situation,
            lock=self._lock,
            clocks=self._clock,
        )
        self._heartbeat.on_answers = self._doors.answer
        self._doors.on_answered = self._heartbeat.beat_now
        self._reports = reports.Sender(self._outbox, self._session, self._tasks)
        view = status.StatusView(
            self._instance,
            self._settings,
            self._identity,
            sessions=self._session,
            held=self._tasks,
            reports=self._outbox,
            stands=self._standing,
            beats=self._heartbeat,
            executor=self._executor,
            updates=self._orders,
            remotely=self._remote,
            probing=self._probe,
            programs=lambda: self._runners.programs,
            clocks=self._clock,
        )
        self._local = localapi.LocalApi(self._instance.socket, status=view.build, act=self._act_locally)
        self._work.on_host_shutdown = lambda: self._on_departure(departure.SYSTEM, shutdown.NOTICE)
        self._tasks.on_free = self._poll.reconsider
        self._tasks.on_running = self._follower.reconsider
        self._session.on_change = self._poll.reconsider
        self._session.on_contact = self._on_contact
        self._session.on_directives = self._on_directives

    def _start_loops(self) -> None:
        self._remote.facts = self._standing.facts
        self._remote.use = self._use
        self._use(self._remote.effective())
        self._remote.raise_problem(self.anomalies)
        self._orders.raise_problem(self.anomalies)
        loops: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("session", lambda: self._session.keep_open(self._describe, self._opened, self._lock)),
            ("heartbeat", self._heartbeat.run),
            ("poll", self._poll.run),
            ("reports", self._reports.run),
            ("output", self._follower.run),
            ("clean-up", self._janitor.run),
            ("grace", self._keep_grace),
            ("updates", lambda: self._orders.watch(self._on_update)),
            ("gateway", self._gate_check.run),
            ("settings", lambda: self._remote.watch(self._on_settings_left)),
            ("watchdog", lambda: watchdog.feed(self._outbox)),
            *self._departure_loops(),
        ]
        for name, loop in loops:
            self._loops.append(background.start(_run_always(name, loop), name=name))

    def _reconsider(self) -> None:
        self._poll.reconsider()
        self._follower.reconsider()

    # --- session -----------------------------------------------------------------------------------------------------

    def _describe(self) -> wire.SessionOpen:
        return wire.SessionOpen(
            version=__version__,
            protocol=versions.PROTOCOL_VERSION,
            hostname=socket.gethostname()[:256],
            instance=self._instance.name,
            boot_id=self._boot_id,
            stream=self._outbox.stream,
            tasks=self._tasks.held(),
            executor=self._executor.name,
            guarantees=self._executor.guarantees(),
            fingerprint=fingerprint.read(),
            max_concurrent_tasks=self._settings.max_concurrent_tasks,
            runners=sorted(self._runners.names),
            facts={
                "system": platform.system(),
                "kernel": platform.release(),
                "architecture": platform.machine(),
                **{f"runner {name}": program for name, program in self._runners.programs.items()},
            },
        )

    def _opened(self, answer: wire.SessionOpened, sent: float) -> None:
        stopped = {order.task_id for order in answer.stop} | set(answer.forget)
        lease = answer.directives.lease_seconds
        self._tasks.renew(self._tasks.ids - stopped, heartbeat.deadline(sent, lease))
        self._tasks.stop(answer.stop)
        self._tasks.forget(answer.forget)
        if self._outbox.acknowledge(answer.applied):
            self._tasks.applied(answer.applied)

    def _on_directives(self, directives: wire.Directives) -> None:
        if directives.license is not None:
            self._standing.renew_license(directives.license)
        self._orders.obey(directives.update)
        self._heartbeat.hear(directives)
        if self._remote.obey(directives.configuration, self.anomalies):
            self._heartbeat.beat_now()

    def _on_contact(self) -> None:
        self._grace.contact()
        self._remote.contact()

    def _on_settings_left(self) -> None:
        self._heartbeat.beat_now()
        self._remote.raise_problem(self.anomalies)

    def _use(self, settings: config.HostConfig) -> None:
        """Work with other settings from now on."""
        self._standing.use(settings)
        self._janitor.use(keep_days=settings.keep_failed_days, disk_reserve=settings.disk_reserve)
        self._work.agent_linger = settings.agent_linger
        if settings.log_level != self._log_level:
            self._log_level = settings.log_level
            logs.set_level(settings.log_level)
        self._poll.ask_anew()
        self._follower.reconsider()

    def _on_update(self) -> None:
        """Tell how an update goes, and raise one that ended badly; a daemon that was away meanwhile, at its start."""
        self._heartbeat.beat_now()
        self._orders.raise_problem(self.anomalies)

    def _situation(self, number: int, asked: int, acknowledged: int) -> intake.Situation:
        return intake.Situation(
            trusted=self._identity.trusted_keys,
            agent_id=self._identity.agent_id,
            session=number,
            poll=asked,
            acknowledged=acknowledged,
            held=self._tasks.ids,
            runners=self._runners.names,
            blocks=self._standing.blocks(),
            check_policy=self._standing.check_policy,
            host=socket.gethostname(),
        )

    # --- the end of the host ------------------------------------------------------------------------------------------

    def _departure_loops(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        cloud = preemption.choose(self._settings.cloud, self._settings.cloud_metadata)
        if cloud is not None:
            say = functools.partial(self._on_departure, departure.CLOUD)
            yield "preemption", functools.partial(preemption.watch, cloud, say)
        if shutdown.has_bus():
            say = functools.partial(self._on_departure, departure.LOGIND)
            yield "shutdown", functools.partial(shutdown.watch, self._instance.name, say, self._tell_control_plane)

    def _on_departure(self, source: str, notice: departure.Notice | None) -> None:
        """Do what follows when somebody announces the end of this host, or takes that back."""
        if not self._departure.say(source, notice):
            return
        reason = self._departure.reason
        if reason:
            _log.warning("no new work is taken: %s", reason, extra={"action": "drain-began"})
        else:
            _log.info("this host stays; work is taken again", extra={"action": "drain-ended"})
        if self._departure.near:
            self._tasks.move(reason, grace_seconds=departure.GRACE_SECONDS)
        self._heartbeat.beat_now()
        self._reconsider()

    async def _tell_control_plane(self) -> None:
        """Send a heartbeat now, if there is somebody to hear it."""
        if self._session.is_open and self._session.failure is None:
            with contextlib.suppress(errors.AgentinaError):
                await self._heartbeat.beat()

    async def end(self) -> None:
        """The last acts before :meth:`close`: where the system stops, the control plane hears of it."""
        if self._instance.layout.is_system and await asyncio.to_thread(services.is_stopping):
            self._on_departure(departure.SYSTEM, shutdown.NOTICE)
            await self._tell_control_plane()

    # --- the local socket --------------------------------------------------------------------------------------------

    def _act_locally(self, request: local.LocalRequest) -> None:
        if request.verb == "drain":
            self._standing.drain(request.reason)
            if request.move:
                self._tasks.move("its host is drained" + (f": {request.reason}" if request.reason else ""))
        elif request.verb == "resume":
            self._standing.resume()
        elif request.verb == "reload":
            self.reload()
            return
        elif request.verb == "probe":
            self._probe.begin()
            return
        _log.info("asked locally: %s", request.verb, extra={"action": f"local-{request.verb}"})
        self._heartbeat.beat_now()
        self._reconsider()

    # --- duties ------------------------------------------------------------------------------------------------------

    async def _keep_grace(self) -> None:
        while True:
            self._grace.write()
            await asyncio.sleep(_GRACE_SECONDS)


async def _run_always(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop; should a fault of ours end it, begin it again: the rest of the daemon depends on every one."""
    pause = backoff.Backoff(first=1.0)
    while True:
        try:
            await loop()
        except Exception:  # noqa: BLE001 - see above
            _log.exception("the %s loop failed and begins again", name, extra={"action": "loop-failed"})
            await asyncio.sleep(pause.delay())
        else:
            return


@contextlib.contextmanager
def _only_daemon(instance: paths.InstancePaths) -> Iterator[None]:
    """Hold the instance's lock."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.exclusive_lock(instance.lock))
        except BlockingIOError as error:
            try:
                pid = instance.lock.read_text("ascii").strip() or "unknown"
            except (OSError, UnicodeDecodeError):
                pid = "unknown"
            raise errors.DAEMON_RUNNING(instance=instance.name, pid=pid) from error
        except OSError as error:
            raise files.from_os_error(error, instance.lock) from error
        with contextlib.suppress(OSError):  # for people only; a full disk keeps no daemon from its work
            instance.lock.write_text(f"{os.getpid()}\n", "ascii")
        yield


def _watch_children_by_pidfd() -> None:
    """Wait for git processes by pidfd: Python 3.11 would start a thread for each; later versions do this themselves."""
    if hasattr(asyncio, "PidfdChildWatcher") and hasattr(os, "pidfd_open"):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)
