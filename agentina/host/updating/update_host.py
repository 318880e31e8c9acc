"""What an update does to a host with systemd: the steps of :class:`agentina.updates.engine.Host`. Root's.

======================  ==============================================================================================
step                     how
======================  ==============================================================================================
fetch                    TUF from the control plane (:mod:`agentina.host.updating.offers`); ``fetched.json`` says what
                         and where
verify                   the archive's hash again, from this disk
stage                    unpacked below /opt/agentina (:mod:`agentina.updates.releases`), byte code made
smoke-check              its own ``smoke-check``, as the daemons' user, in a unit of its own that may change nothing;
                         then the identity is copied (:mod:`agentina.host.updating.backups`)
begin the trial          ``trials/<instance>`` names it; ``agentina-trial@`` starts, which stops the stable unit first
watch                    :mod:`agentina.host.updating.trials` judges what PID 1 and the daemon's socket say
promote                  links, then the stable unit starts, which stops the trial first; both are looked at
undo                     the trial is stopped, its log kept; links; an identity that it damaged; the stable unit runs
======================  ==============================================================================================

Who dies when: the updater may, at any point: PID 1 starts it again, and meanwhile the trial's own conditions hold
(``RuntimeMaxSec=``, ``OnFailure=``). The trial's end brings the stable unit back without the updater.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from agentina import errors
from agentina.client import api, local
from agentina.host.instance import config
from agentina.host.updating import backups, offers, trials, wishes
from agentina.system import cgroups, clock, files, paths, services, unit_states
from agentina.updates import engine, journal, releases
from agentina.updates.journal import Reason

LAUNCH: Final = "/usr/lib/agentina/launch"
#: Seconds a smoke check may take.
_SMOKE_SECONDS: Final = 60
#: Seconds between looks at a trial: what PID 1 and another process know has no event here.
_LOOK_AGAIN: Final = 0.2
#: Seconds after which a task over its memory limit that could not be run is asked for again.
_PROBE_AGAIN: Final = 5.0
#: Seconds a start may take, with the stop before it (TimeoutStartSec=, TimeoutStopSec=).
_START_SECONDS: Final = 150.0
_MAX_NOTE: Final = 64 << 10
_MAX_LOG: Final = 256 << 10
_LOG_LINES: Final = 500
#: Logs of failed releases that are kept.
_KEPT_LOGS: Final = 5
#: What a smoke check may do: look, as the daemons' user.
_SMOKE_SANDBOX: Final = (
    "User=agentina", "Group=agentina", "CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict",
    "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes", "PrivateNetwork=yes", "RestrictNamespaces=yes",
    "MemoryDenyWriteExecute=yes", "SystemCallFilter=@system-service", "MemoryMax=512M", "TasksMax=64",
    f"RuntimeMaxSec={_SMOKE_SECONDS}s",
)  # fmt: skip

_log = logging.getLogger(__name__)


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """What was fetched for an update."""

    version: str
    #: File in the downloads.
    name: str
    sha256: str


class SystemdHost:
    """Keeps :class:`agentina.updates.engine.Host`. The caller holds the store's lock."""

    def __init__(
        self, instance: paths.InstancePaths, store: releases.Store, *, terms: trials.Terms,
        say: Callable[[str], None] = _log.info,
    ) -> None:  # fmt: skip
        self._instance = instance
        self._store = store
        self._terms = terms
        self._say = say
        #: When the daemon on trial last answered; CLOCK_MONOTONIC.
        self._heard = time.monotonic()
        self.stable = services.unit_of(instance.name)
        self.trial = services.trial_of(instance.name)

    # --- the steps --------------------------------------------------------------------------------------------------

    def facts(self) -> journal.Facts:
        """See :class:`engine.Host`."""
        unit = unit_states.show(self.trial)
        state = journal.Trial.RUNNING if unit.runs else journal.Trial.ABSENT
        failure, detail = Reason.CRASHED, self._rescue_note()
        if not unit.runs and unit.state == "failed":
            state = journal.Trial.FAILED
            failure, detail = trials.why_ended(unit)
        return journal.Facts(
            linked=self._store.linked(self._instance.name), boot_id=clock.boot_id(), trial=state, failure=failure,
            detail=detail, recalled=wishes.recalled(self._instance),
        )  # fmt: skip

    def fetch(self, update: journal.Update) -> None:
        """See :class:`engine.Host`."""
        with offers.Offers(self._instance) as offered:
            path = offered.fetch(offered.find(update.version))
        fetched = Fetched(version=update.version, name=path.name, sha256=_sha256(path))
        files.write_atomic(self._fetched, msgspec.json.encode(fetched), mode=0o644)

    def verify(self, update: journal.Update) -> None:
        """See :class:`engine.Host`."""
        path, expected = self._archive(update)
        if not path.is_file() or _sha256(path) != expected:
            path.unlink(missing_ok=True)
            raise errors.RELEASE_UNSUITABLE(version=update.version, problem="its archive changed on this disk")

    def stage(self, update: journal.Update) -> None:
        """See :class:`engine.Host`."""
        path, _ = self._archive(update)
        release = self._store.unpack(path, update.version, architecture=offers.architecture())
        for directory in (release / "lib", release / f"lib-{releases.python_tag()}"):
            # Without it every start compiles everything; the launcher writes none. Anew, for a power cut may have left
            # some that only look whole.
            compileall.compile_dir(directory, quiet=2, force=True)
            for path in directory.rglob("__pycache__"):
                for each in path.iterdir():
                    files.sync_file(each)
                files.sync_directory(path)

    def smoke_check(self, update: journal.Update) -> None:
        """See :class:`engine.Host`."""
        self._store.link_trial(self._instance.name, update.version)
        properties = [word for setting in _SMOKE_SANDBOX for word in ("--property", setting)]
        command = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec", *properties]
        command += [LAUNCH, "--trial", "smoke-check", "--instance", self._instance.name]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
                timeout=_SMOKE_SECONDS + 30,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise engine.StepFailedError(Reason.SMOKE_CHECK_FAILED, "it did not come to an end") from error
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[-500:]
            raise engine.StepFailedError(Reason.SMOKE_CHECK_FAILED, f"exit code {done.returncode}: {said}")
        # From here on the new release may write.
        backups.keep(self._instance, version=update.version, wall_ms=clock.SystemClock().wall_ms())

    def begin_trial(self, update: journal.Update) -> None:
        """See :class:`engine.Host`."""
        self._store.link_trial(self._instance.name, update.version)
        services.try_order("reset-failed", self.trial)
        services.order("start", "--no-block", self.trial)

    def watch(self, update: journal.Update) -> str:
        """See :class:`engine.Host`."""
        asked_again = 0.0
        while True:
            seen = self._look()
            judgement = trials.judge(seen, version=update.version, terms=self._terms)
            if judgement.verdict is trials.Verdict.GOOD:
                return trials.unproved(seen)
            if judgement.reason is not None:
                raise self._failed(judgement)
            if wishes.recalled(self._instance) == update.version:
                raise engine.StepFailedError(Reason.ROLLOUT)
            if trials.wants_probe(seen) and seen.now >= asked_again:
                asked_again = seen.now + _PROBE_AGAIN
                with contextlib.suppress(errors.AgentinaError):
                    local.ask(self._instance, "probe")
            time.sleep(_LOOK_AGAIN)

    def promote(self, update: journal.Update) -> None:
        """See :class:`engine.Host`."""
        engine.promote_links(self._store, self._instance.name, update)
        services.try_order("reset-failed", self.stable)
        # The conflict stops the trial first; it has left a result by the time the stable unit is up.
        is_up = services.try_order("start", self.stable, timeout=_START_SECONDS)
        ended = unit_states.show(self.trial)
        if ended.state == "failed" and ended.result == "timeout":
            raise engine.StepFailedError(Reason.NOT_STOPPING, "systemd had to kill it")
        if not is_up:
            unit = unit_states.show(self.stable)
            # PID 1 may have started it again by now.
            why = trials.why_ended(unit) if unit.result != "success" else (Reason.START_FAILED, "")
            raise engine.StepFailedError(*why)
        self._end_trial()

    def undo(self, update: journal.Update | None) -> None:
        """See :class:`engine.Host`."""
        was_stable = update is not None and any(
            moment.state in {journal.State.PROMOTING, journal.State.PROMOTED} for moment in update.moments
        )
        if update is not None:
            self._keep_log(update, self.stable if was_stable else self.trial)
            engine.undo_links(self._store, self._instance.name, update)
        services.try_order("stop", self.trial)
        self._end_trial()
        self._restore_identity()
        services.try_order("reset-failed", self.stable)
        if was_stable:
            services.try_order("restart", "--no-block", self.stable)
        elif services.is_enabled(self._instance.name):
            services.try_order("start", "--no-block", self.stable)

    # --- parts ------------------------------------------------------------------------------------------------------

    @property
    def _fetched(self) -> Path:
        return self._instance.updates / "fetched.json"

    def _archive(self, update: journal.Update) -> tuple[Path, str]:
        """The archive of an update, and its hash as it was when its signatures were verified."""
        try:
            fetched = msgspec.json.decode(files.read_bounded(self._fetched, limit=_MAX_NOTE), type=Fetched)
        except (OSError, msgspec.MsgspecError):
            fetched = None
        if fetched is None or fetched.version != update.version:
            raise errors.RELEASE_UNSUITABLE(version=update.version, problem="what was fetched is not here any more")
        return self._instance.updates / "downloads" / fetched.name, fetched.sha256

    def _look(self) -> trials.Seen:
        unit = unit_states.show(self.trial)
        status: dict[str, Any] | None = None
        if unit.state == "active":
            with contextlib.suppress(errors.AgentinaError):
                status = local.ask(self._instance, "status")
                self._heard = time.monotonic()
        tasks = unit_states.show_all(f"agentina-task@{self._instance.name}-S*.service")
        older = sum(1 for task in tasks if task.state == "active" and 0 < task.up < unit.began)
        now = time.monotonic()
        return trials.Seen(
            unit=unit, status=status, older_tasks=older, now=now, silent=now - max(self._heard, unit.up),
            can_limit="memory" in cgroups.controllers(),
        )  # fmt: skip

    def _failed(self, judgement: trials.Judgement) -> engine.StepFailedError:
        reason, detail = judgement.reason, judgement.detail
        assert reason is not None
        if reason is Reason.NO_HEARTBEAT and (trials.is_told_to_wait(self._look().status) or not self._reaches()):
            return engine.StepFailedError(Reason.CONTROL_PLANE_AWAY, detail)
        return engine.StepFailedError(reason, detail)

    def _reaches(self) -> bool:
        """Whether this process, of the release that ran before, gets an answer of the control plane."""
        try:
            settings = config.load(self._instance)
            with api.Client(
                settings.control_plane, ca_file=settings.ca_file, timeout_seconds=10, patience=api.Patience(attempts=1)
            ) as client:
                client.health()
        except errors.AgentinaError:
            return False
        return True

    def _end_trial(self) -> None:
        services.try_order("reset-failed", self.trial)
        self._store.link_trial(self._instance.name, None)

    def _restore_identity(self) -> None:
        """Have what damaged the identity leave nothing behind. Where that fails, the rescue tries again."""
        try:
            restored = backups.restore(self._instance, always=False)
        except errors.AgentinaError as error:
            _log.error("%s", error, extra={"action": "identity-not-restored", "code": error.code})
            return
        if restored:
            _log.warning("put back: %s", ", ".join(restored), extra={"action": "identity-restored"})

    def _keep_log(self, update: journal.Update, unit: str) -> None:
        """Keep what the failed release wrote, as long as it is one of the latest that failed."""
        directory = self._instance.updates / "logs"
        # From its first moment as a release that runs; the journal's time is the wall clock's, for people.
        began = next((one.at_ms for one in update.moments if one.state is journal.State.ON_TRIAL), None)
        if began is None:
            return
        command = ["journalctl", "--no-pager", "--output=short-iso", f"--lines={_LOG_LINES}", f"--unit={unit}"]
        command += [f"--since=@{began // 1000}"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=30, check=False)
            # Its group is the daemons': from the directory above, which the package made (agentina.tmpfiles).
            directory.mkdir(mode=0o755, exist_ok=True)
            path = directory / f"{update.version}.log"
            files.write_atomic(path, done.stdout[-_MAX_LOG:], mode=0o640, durable=False)
            for old in sorted(directory.glob("*.log"), key=lambda one: one.stat().st_mtime)[:-_KEPT_LOGS]:
                old.unlink()
        except (OSError, subprocess.TimeoutExpired, errors.AgentinaError) as error:
            _log.warning("the log of %s could not be kept: %s", update.version, error)

    def _rescue_note(self) -> str:
        """What the rescue helper wrote when it last moved the link."""
        try:
            return files.read_bounded(self._instance.updates / "rescued", limit=_MAX_NOTE).decode("utf-8", "replace")
        except (OSError, errors.AgentinaError):
            return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
