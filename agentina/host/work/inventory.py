"""What a starting daemon finds: every task directory and every accepted task, classified by what disk and kernel say.

The table of docs/explanation/architecture.md ("Crash points of a task on the host") is :func:`classify`; the rest
reads. One damaged directory never stops the others.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agentina import errors
from agentina.executors import contract
from agentina.host.instance import outbox
from agentina.host.work import entries, outcomes, records, state
from agentina.protocol import names, signing, wire
from agentina.protocol.states import Reason
from agentina.system import clock, files

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What is known of one task."""

    #: The outbox has its acceptance.
    held: bool
    #: The outbox is new, so that the directories are the only truth.
    outbox_fresh: bool
    #: Its final report was written.
    final: bool
    directory: bool
    #: The record, from job.json or the outbox, is readable and verifies.
    record: bool
    #: Accepted in this boot of the host.
    same_boot: bool
    #: outcome.json is there and readable.
    collected: bool
    condition: contract.Condition


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What follows: ``found`` None means that the directory is deleted and nothing is held."""

    found: state.Found | None
    #: For tasks that end with it.
    lost: Reason | None = None


def classify(evidence: Evidence) -> Finding:  # noqa: PLR0911 - one line of the table each
    """The line of the crash table that fits."""
    if evidence.final and evidence.held:
        return Finding(state.Found.REPORTED)
    if not evidence.held and not _is_worth_keeping(evidence):
        # Never durably accepted, or forgotten just before the daemon ended.
        return Finding(None)
    if not evidence.record and evidence.condition is contract.Condition.RUNNING:
        # Ended first; its outcome is then the same as below.
        return Finding(state.Found.RUNNING, Reason.RECORD_DAMAGED)
    if not evidence.directory or not evidence.record:
        # A power cut may take a directory that is not yet on disk: then it is no damage.
        is_cut = evidence.record and not evidence.same_boot
        return Finding(state.Found.LOST, Reason.HOST_RESTARTED if is_cut else Reason.RECORD_DAMAGED)
    if evidence.collected:
        return Finding(state.Found.COLLECTED)
    if evidence.condition is contract.Condition.RUNNING:
        return Finding(state.Found.RUNNING)
    if evidence.condition is contract.Condition.ENDED:
        return Finding(state.Found.ENDED)
    if not evidence.same_boot:
        # Also where no start is recorded: a power cut may have taken the executor's mark with it, so nobody can
        # promise that it never ran.
        return Finding(state.Found.LOST, Reason.HOST_RESTARTED)
    if evidence.condition is contract.Condition.UNSTARTED:
        return Finding(state.Found.UNSTARTED)
    return Finding(state.Found.LOST, Reason.SUPERVISOR_DIED)


def _is_worth_keeping(evidence: Evidence) -> bool:
    """Whether a directory the outbox does not know is a task all the same."""
    if not evidence.directory:
        return False
    return evidence.outbox_fresh or evidence.condition is contract.Condition.RUNNING


@dataclasses.dataclass(frozen=True, slots=True)
class Adoption:
    """A task to go on with."""

    entry: entries.Entry
    found: state.Found
    outcome: wire.Outcome | None
    #: The outbox has its acceptance; otherwise it is written again.
    held: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Inventory:
    """Everything found."""

    adoptions: list[Adoption]
    #: Directories to delete.
    leftovers: list[Path]
    #: What was set aside, for status.
    damage: list[errors.AgentinaError]


class Reader:
    """Reads the state directory of one instance."""

    def __init__(
        self,
        directory: Path,
        *,
        executor: contract.Executor,
        trusted: dict[str, signing.PublicKey],
        boot_id: str,
        clocks: clock.Clock,
    ) -> None:
        self._directory = directory
        self._executor = executor
        self._trusted = trusted
        self._boot_id = boot_id
        self._stamp = clock.show_time(clocks.wall_ms()).replace(":", "")
        self._damage: list[errors.AgentinaError] = []

    def read(self, held: Mapping[str, outbox.HeldRow], *, outbox_fresh: bool) -> Inventory:
        """Look at every directory and every accepted task.

        Raises:
            AgentinaError: ``STATE_UNWRITABLE`` when the directory itself cannot be used.

        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.spread_below(self._directory)
            found = {path.name: path for path in self._directory.iterdir() if names.is_task_id(path.name)}
        except OSError as error:
            raise files.from_os_error(error, self._directory) from error
        inventory = Inventory([], [], self._damage)
        for task_id in sorted(found.keys() | held.keys()):
            if not names.is_task_id(task_id):
                continue
            try:
                self._look(task_id, held.get(task_id), inventory, outbox_fresh=outbox_fresh)
            except Exception:  # noqa: BLE001 - whatever is wrong with one task, the others go on
                _log.exception("task %s cannot be looked at", task_id, extra={"task": task_id})
        return inventory

    def _look(self, task_id: str, row: outbox.HeldRow | None, inventory: Inventory, *, outbox_fresh: bool) -> None:
        directory = records.TaskDirectory(self._directory / task_id)
        there = directory.path.is_dir()
        content, record, assignment = self._read_record(directory, row)
        condition, running = self._executor.adopt(directory.path) if there else (contract.Condition.UNSTARTED, None)
        collection = directory.read_collection() if there else None
        final = None if row is None else _read_final(row)
        evidence = Evidence(
            held=row is not None,
            outbox_fresh=outbox_fresh,
            final=final is not None,
            directory=there,
            record=record is not None,
            same_boot=record is not None and record.boot_id == self._boot_id,
            collected=collection is not None,
            condition=condition,
        )
        finding = classify(evidence)
        if finding.found is None:
            inventory.leftovers.append(directory.path)
            return
        deadline = record.lease_deadline if record is not None and evidence.same_boot else None
        entry = entries.from_disk(directory, content, assignment, deadline=deadline)
        if running is not None:
            entry.pid, entry.started_ms = running.pid, running.started_ms
        outcome = None
        if final is not None:
            outcome = final.outcome
            entry.returned_as = final.number if final.kind == "returned" else 0
        elif finding.lost is not None:
            outcome = outcomes.lost(finding.lost)
        elif collection is not None:
            outcome = collection.outcome
            entry.artifacts = dict(collection.paths)
        if finding.lost is Reason.RECORD_DAMAGED and there:
            self._contain_damage(directory, condition)
        inventory.adoptions.append(Adoption(entry, finding.found, outcome, row is not None))

    def _read_record(
        self, directory: records.TaskDirectory, row: outbox.HeldRow | None
    ) -> tuple[bytes, records.Record | None, wire.Assignment | None]:
        """The record from job.json, or from the outbox when that is missing or damaged."""
        sources: list[bytes] = []
        try:
            sources.append(files.read_bounded(directory.job, limit=records.MAX_RECORD))
        except (OSError, errors.AgentinaError):
            sources.append(b"")
        if row is not None:
            sources.append(row.record)
        for content in sources:
            try:
                record, assignment = records.read_record(content, directory.path.name, self._trusted)
            except errors.AgentinaError:
                continue
            return content, record, assignment
        return sources[-1], None, None

    def _contain_damage(self, directory: records.TaskDirectory, condition: contract.Condition) -> None:
        """Move a damaged directory out of the way, unless something in it runs: that is ended first."""
        if condition is contract.Condition.RUNNING:
            self._executor.stop(directory.path, contract.StopReason.CANCELED)
            return
        try:
            aside = files.set_aside(directory.path, stamp=self._stamp)
        except OSError as error:
            _log.warning("%s cannot be set aside: %s", directory.path, error)
            return
        problem = "its record is missing or does not verify"
        damage = errors.STATE_CORRUPT(path=str(directory.path), problem=problem, aside=str(aside))
        _log.error("%s", damage, extra={"action": "task-damaged", "task": directory.path.name, "code": damage.code})
        self._damage.append(damage)


def _read_final(row: outbox.HeldRow) -> wire.Report | None:
    """The final report of a task, if it was written."""
    if not row.final:
        return None
    try:
        return msgspec.json.decode(row.final, type=wire.Report)
    except msgspec.MsgspecError:
        return None
