"""Executor ``systemd``: each task is a slot of the template unit ``agentina-task@.service`` (ADR 0009).

The daemon's side, without privileges: it writes tickets, asks PID 1 for starts, and reads what root's helpers and the
supervisor leave. What happens in a slot is theirs (packaging/base/agentina_base). Nothing is kept here that a later
daemon could not find again on disk and in the kernel.

A ticket is how a task gets into a slot: a file that exists once, written whole, and taken by root's helper. What takes
it back deletes it. So whether a start can still happen is always decided by one name in one directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.executors import containment, contract, fields, results
from agentina.system import cgroups, clock, files, systemd, tasks

TEMPLATE: Final = "agentina-task"
#: Where the task sees its own directory.
PLACE: Final = Path("/var/lib/agentina/task")
_VERSION: Final = "1"
_MOST_SLOTS: Final = 9999
_MAX_FILE: Final = 1 << 20
#: Seconds between looks when nothing is heard from PID 1; its messages come long before.
_LOOK_SECONDS: Final = 5.0
#: One process more than the task's own: its supervisor.
_SUPERVISOR: Final = 1
#: What there is room for beyond the limits of a task with companions: one that runs another program
#: (agentina.inside.packer), and what the kernel keeps for them. So a task within its limits is not ended for theirs.
_COMPANION_BYTES: Final = 112 << 20
_COMPANION_PROCESSES: Final = 4

_NETWORK_PRIVATE: Final = "none but its own loopback, and the host's gateway where its job asks for it"
_NETWORK_SHARED: Final = "the host's, as its owner has configured; link-local and cloud metadata addresses are refused"

_log = logging.getLogger(__name__)


class Places:
    """The paths of slots, all below one root; tests put them elsewhere."""

    def __init__(self, instance: str, state: Path) -> None:
        self.instance = instance
        self.tickets = state / "slots"
        self._slots = state.parent / ".slots"
        self._run = Path("/run/agentina-tasks")
        self._cgroups = Path("/sys/fs/cgroup/agentina.slice/agentina-tasks.slice")

    def name(self, number: int) -> str:
        """The instance name of a slot's unit."""
        return f"{self.instance}-S{number}"

    def unit(self, number: int) -> str:
        """The unit of a slot."""
        return f"{TEMPLATE}@{self.name(number)}.service"

    def cgroup(self, name: str) -> Path:
        """The control group of the slot ``name``: it exists exactly as long as its unit is not at rest."""
        return self._cgroups / f"{TEMPLATE}@{name}.service"

    def run(self, name: str, file: str) -> Path:
        """A file that root's helpers leave for us."""
        return self._run / name / file

    def orders(self, name: str) -> Path:
        """Where the supervisor looks for orders."""
        return self._slots / name / "task/orders"


class SystemdExecutor:
    """See :class:`agentina.executors.contract.Executor`."""

    name = "systemd"
    owns_directories = False

    def __init__(self, state_directory: Path, *, manager: systemd.Manager | None = None) -> None:
        """``state_directory`` is the instance's own, ``/var/lib/agentina/<instance>``."""
        self._places = Places(state_directory.name, state_directory)
        self._manager = manager or systemd.Manager()
        self._boot_id = clock.boot_id()
        self._starting: set[Path] = set()
        self._network_is_private = True

    def guarantees(self) -> dict[str, str]:
        """See :meth:`agentina.executors.contract.Executor.guarantees`."""
        controllers = cgroups.controllers()
        by_kernel = "enforced by the kernel (a control group of its own)"
        without = "not enforced: the host's control groups have no {} controller"
        return {
            "memory": f"{by_kernel}; no swap" if "memory" in controllers else without.format("memory"),
            "cpu": by_kernel if "cpu" in controllers else without.format("cpu"),
            "processes": by_kernel if "pids" in controllers else without.format("pids"),
            "files": (
                "the system is read-only, /home and agentina's own files are hidden; disk use is not enforced by the "
                "kernel: the supervisor looks at least every 10 s and ends the task when it is over its limit"
            ),
            "network": _NETWORK_PRIVATE if self._network_is_private else _NETWORK_SHARED,
            "user": "a user of its own for as long as it runs, without capabilities",
            "containment": "a systemd unit of its own, which ends with everything in it",
        }

    def place(self, directory: Path) -> Path:  # noqa: ARG002 - the same for every task
        """See :meth:`agentina.executors.contract.Executor.place`."""
        return PLACE

    def door(self, directory: Path) -> contract.Door:
        """See :meth:`agentina.executors.contract.Executor.door`.

        It is where orders are: root makes that directory for each task anew and deletes it at the end, the daemon
        alone can change it, and the task sees it. So root has nothing to do with the socket.
        """
        return contract.Door(PLACE / "orders", self._orders(directory), is_shared=True)

    # --- opening -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See :meth:`agentina.executors.contract.Executor.open`.

        Raises:
            AgentinaError: ``SYSTEMD_UNREACHABLE``; ``SYSTEMD_REFUSED`` when polkit does not let us start tasks.

        """
        try:
            self._places.tickets.mkdir(mode=0o700, parents=True, exist_ok=True)
            for ticket in self._places.tickets.iterdir():
                ticket.unlink(missing_ok=True)
        except OSError as error:
            raise files.from_os_error(error, self._places.tickets) from error
        await self._manager.connect()
        # Slot 0 never runs. Better no daemon, with the reason, than one that fails every task.
        await self._manager.set_properties(self._places.unit(0), systemd.limits(memory_bytes=1 << 20, cpus=1, pids=1))
        self._network_is_private = await self._manager.service_property(self._places.unit(0), "PrivateNetwork")
        pattern = f"{TEMPLATE}@{self._places.instance}-S*.service"
        while "activating" in (await self._manager.states(pattern)).values():
            await self._manager.wait_for_change(1.0)

    async def close(self) -> None:
        """See :meth:`agentina.executors.contract.Executor.close`."""
        await self._manager.close()

    # --- starting ----------------------------------------------------------------------------------------------------

    async def start(self, launch: contract.Launch) -> contract.Running:
        """See :meth:`agentina.executors.contract.Executor.start`."""
        if launch.directory in self._starting or _was_started(launch.directory):
            raise _started_before(launch.task_id)
        self._starting.add(launch.directory)
        try:
            while True:
                nonce = secrets.token_hex(8)
                number = self._claim(launch, nonce)
                try:
                    running = await self._start_slot(launch, number, nonce)
                except errors.AgentinaError as error:
                    is_away = error.code == errors.SYSTEMD_UNREACHABLE.code
                    if not is_away or clock.SystemClock().boot() >= launch.lease_deadline:
                        raise
                    # Its ticket is withdrawn, so it never started. PID 1 or the bus starts anew, or the host ends.
                    await self._manager.wait_for_change(1.0)
                    continue
                if running is not None:
                    break
        finally:
            self._starting.discard(launch.directory)
        self._have_stopped(launch.directory)
        return running

    def _claim(self, launch: contract.Launch, nonce: str) -> int:
        """Put the ticket into the first slot that is free."""
        content = fields.encode(_ticket(launch, nonce, self._boot_id))
        temporary = self._places.tickets / f".{nonce}.tmp"
        try:
            files.write_atomic(temporary, content, durable=False)
            for number in range(1, _MOST_SLOTS + 1):
                if self._take_slot(temporary, number):
                    return number
        except OSError as error:
            raise files.from_os_error(error, temporary) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise errors.TASK_START_FAILED(problem=f"all {_MOST_SLOTS} slots are in use")

    def _take_slot(self, ticket: Path, number: int) -> bool:
        """Link a ticket into its slot, unless the slot is in use."""
        name = self._places.name(number)
        target = self._places.tickets / str(number)
        if self._places.cgroup(name).exists():
            return False
        try:
            target.hardlink_to(ticket)
        except FileExistsError:
            return False
        if self._places.cgroup(name).exists():
            # Another daemon's ticket was taken in between, and its task runs here.
            target.unlink(missing_ok=True)
            return False
        return True

    async def _start_slot(self, launch: contract.Launch, number: int, nonce: str) -> contract.Running | None:
        """Start a slot that has the ticket; None when the slot turned out to be in use."""
        unit = self._places.unit(number)
        ticket = self._places.tickets / str(number)
        try:
            await self._manager.set_properties(unit, _limits(launch))
            result = await self._manager.start(unit)
        except BaseException:
            # Nobody knows whether PID 1 has the request. With the ticket gone it does not matter; without a ticket to
            # delete it was started, and the next look at the disk says so.
            if _withdraw(ticket) or not await self._settle(launch.directory, number):
                raise
            result = "done"
        if _withdraw(ticket):
            if result == "done":
                return None
            raise errors.TASK_START_FAILED(
                problem=f"its unit {unit} did not start ({result}); see journalctl -u {unit}"
            )
        return self._find_started(launch, self._places.name(number), nonce)

    async def _settle(self, directory: Path, number: int) -> bool:
        """After the ticket was taken by a start nobody told us about: wait until it shows; whether it started."""
        name = self._places.name(number)
        while not _was_started(directory):
            if not self._places.cgroup(name).exists():
                return _was_started(directory)
            await self._manager.wait_for_change(0.1)
        return True

    def _find_started(self, launch: contract.Launch, name: str, nonce: str) -> contract.Running:
        """What the ticket led to."""
        started = _read(launch.directory / "started")
        if _one(started, "nonce") == nonce:
            _, running = self.adopt(launch.directory)
            return running or contract.Running(pid=0, started_ms=_integer(started, "started_ms"))
        if started:
            raise _started_before(launch.task_id)
        problem = _one(_read(self._places.run(name, "problem")), "problem") or "see the journal of its unit"
        raise errors.TASK_START_FAILED(problem=problem)

    # --- looking -----------------------------------------------------------------------------------------------------

    def adopt(self, directory: Path) -> tuple[contract.Condition, contract.Running | None]:
        """See :meth:`agentina.executors.contract.Executor.adopt`."""
        started = _read(directory / "started")
        name = _one(started, "slot")
        running = None
        if name and self._occupies(started):
            pid = _integer(_read(self._places.run(name, "report")), "pid")
            running = contract.Running(pid=pid, started_ms=_integer(started, "started_ms"))
        # The result last: a task that ended while we looked has one by now.
        if self.read_result(directory) is not None:
            return contract.Condition.ENDED, None
        if running is not None:
            return contract.Condition.RUNNING, running
        if started or _was_started(directory) or (directory / "result.json").exists():
            return contract.Condition.VANISHED, None
        return contract.Condition.UNSTARTED, None

    def _occupies(self, started: dict[str, list[str]]) -> bool:
        """Whether the task with this fence is in its slot, and the slot's unit not at rest."""
        name = _one(started, "slot")
        if _one(started, "boot_id") != self._boot_id or not self._places.cgroup(name).exists():
            return False
        return _one(_read(self._places.run(name, "state")), "nonce") == _one(started, "nonce")

    def cpu_seconds(self, directory: Path) -> float | None:
        """See :meth:`agentina.executors.contract.Executor.cpu_seconds`."""
        started = _read(directory / "started")
        if not self._occupies(started):
            return None
        return containment.cgroup_usage(str(self._places.cgroup(_one(started, "slot")))).cpu_seconds

    async def wait(self, directory: Path) -> None:
        """See :meth:`agentina.executors.contract.Executor.wait`."""
        while self.adopt(directory)[0] is contract.Condition.RUNNING:
            try:
                await self._manager.connect()
                await self._manager.wait_for_change(_LOOK_SECONDS)
            except errors.AgentinaError as error:
                _log.warning("%s", error, extra={"code": error.code})
                await asyncio.sleep(1.0)

    def read_result(self, directory: Path) -> contract.Result | None:
        """See :meth:`agentina.executors.contract.Executor.read_result`."""
        result = results.read(directory)
        if result is None:
            return None
        if result.stopped is contract.StopReason.CANCELED:
            # A base older than this release takes an order it does not know for that.
            order = _read_order(directory)
            if order is not None and order.reason in {contract.StopReason.FINISHED, contract.StopReason.CHECKPOINT}:
                return msgspec.structs.replace(result, stopped=order.reason)
        return result

    def end_leftovers(self, directory: Path) -> int:  # noqa: ARG002 - see below
        """See :meth:`agentina.executors.contract.Executor.end_leftovers`.

        A unit at rest has no processes, and one that is not at rest is running: there are none.
        """
        return 0

    # --- orders ------------------------------------------------------------------------------------------------------

    def stop(self, directory: Path, reason: contract.StopReason, *, grace_seconds: float | None = None) -> None:
        """See :meth:`agentina.executors.contract.Executor.stop`."""
        condition, _ = self.adopt(directory)
        if condition in {contract.Condition.ENDED, contract.Condition.VANISHED}:
            return
        order = contract.Order(reason=reason, grace_seconds=grace_seconds)
        self._have_stopped(directory, order.following(_read_order(directory)))

    def _have_stopped(self, directory: Path, order: contract.Order | None = None) -> None:
        """Give an order, or the one that waits, to the supervisor, if there are both."""
        try:
            if order is not None:
                # Here for a start still to come, and for the next daemon; the supervisor's own copy follows.
                files.write_atomic(directory / "stop", _order_file(order), durable=False)
            orders = self._orders(directory)
            if orders is not None and (directory / "stop").exists():
                with contextlib.suppress(FileNotFoundError):  # it was taken away meanwhile
                    _give(orders / "stop", files.read_bounded(directory / "stop"))
        except errors.AgentinaError as error:
            _log.warning("the order to stop %s could not be written: %s", directory.name, error)
            self._stop_unit(directory)

    def _stop_unit(self, directory: Path) -> None:
        """Where no file can be written PID 1 carries the order, without its reason."""
        name = _one(_read(directory / "started"), "slot")
        if name:
            unit = f"{TEMPLATE}@{name}.service"
            tasks.start(
                self._manager.stop(unit), name=f"stop {unit}", on_failure=lambda error: _log.warning("%s", error)
            )

    def accompany(self, directory: Path, companion: contract.Companion | None) -> None:
        """See :meth:`agentina.executors.contract.Executor.accompany`. The supervisor looks twice a second."""
        orders = self._orders(directory)
        if orders is None:
            return
        try:
            if companion is None:
                (orders / "companion").unlink(missing_ok=True)
                return
            content = fields.encode([
                ("nonce", secrets.token_hex(8)),
                ("seconds", str(companion.seconds)),
                *(("argv", part) for part in companion.argv),
            ])  # fmt: skip
            _give(orders / "companion", content)
        except OSError as error:
            raise files.from_os_error(error, orders / "companion") from error

    def renew(self, directory: Path, lease_deadline: float) -> None:
        """See :meth:`agentina.executors.contract.Executor.renew`."""
        orders = self._orders(directory)
        if orders is None:
            return
        # In place and of one width: a full disk, which could not take a new file, must not cost a task its lease.
        try:
            descriptor = os.open(orders / "lease", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(descriptor, f"{lease_deadline:020.6f}".encode("ascii"), 0)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return  # it ended meanwhile
        except OSError as error:
            raise files.from_os_error(error, orders / "lease") from error

    def _orders(self, directory: Path) -> Path | None:
        started = _read(directory / "started")
        return self._places.orders(_one(started, "slot")) if started and self._occupies(started) else None


def _limits(launch: contract.Launch) -> dict[str, systemd.Value]:
    """The limits of the unit that runs a task."""
    memory, pids = launch.memory_bytes, launch.pids + _SUPERVISOR
    if launch.has_companions:
        memory, pids = memory + _COMPANION_BYTES, pids + _COMPANION_PROCESSES
    return systemd.limits(memory_bytes=memory, cpus=launch.cpus, pids=pids)


def _ticket(launch: contract.Launch, nonce: str, boot_id: str) -> list[tuple[str, str]]:
    """What prepare and the supervisor need to know (agentina_base.preparing)."""
    stop = _read(launch.directory / "stop")
    return [
        ("version", _VERSION),
        ("boot_id", boot_id),
        ("nonce", nonce),
        ("task_id", launch.directory.name),
        *(("argv", part) for part in launch.argv),
        *(("verify", part) for part in launch.verify or ()),
        *(("mirror", mirror.name) for mirror in (launch.mirror,) if mirror is not None),
        *(("environment", f"{name}={value}") for name, value in launch.environment.items()),
        ("memory_bytes", str(launch.memory_bytes)),
        ("disk_bytes", str(launch.disk_bytes)),
        ("output_bytes", str(launch.output_bytes)),
        ("timeout_seconds", str(launch.timeout_seconds)),
        ("grace_seconds", str(launch.grace_seconds)),
        ("lease_deadline", str(launch.lease_deadline)),
        ("oom", launch.oom),
        *(("stop", reason) for reason in stop.get("reason", ())),
        *(("stop_grace", grace) for grace in stop.get("grace_seconds", ())),
    ]


def _give(path: Path, content: bytes) -> None:
    """Write an order where the task's supervisor looks for it; nothing, if the task has ended and the place is gone."""
    try:
        files.write_atomic(path, content, mode=0o644, durable=False)
    except errors.AgentinaError:
        if path.parent.exists():
            raise


def _withdraw(ticket: Path) -> bool:
    """Delete a ticket; False when it was taken."""
    try:
        ticket.unlink()
    except FileNotFoundError:
        return False
    return True


def _was_started(directory: Path) -> bool:
    return os.path.lexists(directory / "started")


def _read(path: Path) -> dict[str, list[str]]:
    """A file of names and values; empty when there is none that can be read."""
    try:
        return fields.decode(files.read_bounded(path, limit=_MAX_FILE))
    except (OSError, ValueError, errors.AgentinaError):
        return {}


def _read_order(directory: Path) -> contract.Order | None:
    """The order that waits; None when there is none that can be read."""
    found = _read(directory / "stop")
    try:
        grace = float(_one(found, "grace_seconds")) if "grace_seconds" in found else None
        return contract.Order(reason=contract.StopReason(_one(found, "reason")), grace_seconds=grace)
    except ValueError:
        return None


def _order_file(order: contract.Order) -> bytes:
    grace = [] if order.grace_seconds is None else [("grace_seconds", str(order.grace_seconds))]
    return fields.encode([("reason", order.reason.value), *grace])


def _one(found: dict[str, list[str]], name: str) -> str:
    return found.get(name, [""])[0]


def _integer(found: dict[str, list[str]], name: str) -> int:
    text = _one(found, name)
    return int(text) if text.isdecimal() else 0


def _started_before(task_id: str) -> errors.AgentinaError:
    return errors.STATE_CONFLICT(what=f"task {task_id}", state="started already", expected="a task never started")
