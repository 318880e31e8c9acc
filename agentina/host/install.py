"""Make a host an agent, and take an agent off a host. Both may be interrupted anywhere and run again.

Install goes through these steps; each is skipped when what it makes is there already:

1. the host is checked (:mod:`agentina.host.instance.doctor`),
2. a key is made here and stored, durably, together with the token's hash: *before* the token is shown to anybody,
3. the token is redeemed with that key; an answer lost on the way is fetched by running install again, for redeeming is
   idempotent for the same key and token,
4. license and configuration are stored, and last the identity with its agent id: that write is the commit point,
5. the service is enabled and started and the first heartbeat awaited, where there is a service manager
   (:mod:`agentina.host.instance.service`).

The token itself is never stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

import agentina
from agentina import errors
from agentina.client import address, api, local
from agentina.host.instance import config, doctor, identity, service
from agentina.host.updating import backups
from agentina.protocol import inputs, licensing, names, signing, units, versions
from agentina.system import files, paths, processes, services, users

Say = Callable[[str], None]

#: Seconds between looks at something that cannot be awaited (another process's socket or lock).
_LOOK_AGAIN: Final = 0.1
#: Where uninstall keeps the configuration, so that installing again finds the same control plane.
_KEPT_CONFIG: Final = "config.json"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the person asked for. ``repr`` hides the token."""

    control_plane: str
    #: Empty: none given, which is fine when the instance is activated already.
    token: str = dataclasses.field(default="", repr=False)
    role: str | None = None
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    max_concurrent_tasks: int | None = None
    ca_file: str = ""
    #: Start a service where there is a service manager.
    service: bool = True
    #: Seconds to wait for the first heartbeat.
    timeout_seconds: float = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """What install left behind."""

    agent_id: str
    organization: str
    #: What this run changed, in words; empty: everything was in place.
    changed: list[str]
    #: Whether a service runs the daemon.
    service: bool


class Stage(enum.Enum):
    """How far an earlier run came, as its files tell."""

    #: Nothing is here.
    NEW = "new"
    #: A key is here, and the token may have been redeemed with it.
    PENDING = "pending"
    #: Activated.
    ACTIVATED = "activated"


def stage_of(known: identity.Identity | None) -> Stage:
    """How far activation came."""
    if known is None:
        return Stage.NEW
    return Stage.ACTIVATED if known.agent_id else Stage.PENDING


def install(instance: paths.InstancePaths, request: Request, *, say: Say) -> Installed:
    """Make this host's instance an agent of a control plane; idempotent.

    Raises:
        AgentinaError: ``PRECONDITION_FAILED``, ``INSTANCE_OTHER``, ``USAGE``, ``IDENTITY_DAMAGED``, ``TOKEN_…``,
            ``LICENSE_…``, ``CONTROL_PLANE_UNREACHABLE``, ``SERVICE_FAILED``, ``DAEMON_NOT_RUNNING``,
            ``FILE_UNREADABLE`` (of the control plane's certificates).

    """
    url = str(address.parse(request.control_plane))
    for key, value in request.labels.items():
        names.check_label(key, value)
    if request.role is not None:
        names.check_role(request.role)
    doctor.require([doctor.check_writable(instance)])
    if request.ca_file:
        _keep_certificates(Path(request.ca_file))
    owner = service.owner_of(instance.layout) if request.service else None
    if instance.state.exists():
        service.make_state(instance, owner)
    with users.acting_as(owner):
        settings = _known_settings(instance)
        known = identity.load(instance)
    if settings is not None and str(address.parse(settings.control_plane)) != url:
        raise errors.INSTANCE_OTHER(instance=instance.name, url=settings.control_plane)
    changed: list[str] = []
    if stage_of(known) is not Stage.ACTIVATED:
        _check_host(instance, say)
        _check_token(request)
        service.make_state(instance, owner)
        with users.acting_as(owner):
            known = _activate(instance, request, url, known, say=say)
        _save_new_config(instance, request, url)
        with users.acting_as(owner):
            identity.save(instance, known)
        backups.forget(instance)
        changed.append(f"activated as {known.agent_id}")
    assert known is not None
    with users.acting_as(owner):
        license_ = identity.load_license(instance, known)
    changed += _settle_config(instance, request, url, settings)
    served = request.service and service.is_managed(instance.layout)
    if served:
        _trust_releases(instance, say)
        _serve(instance, request, changed, say)
    _note_differences(known, request, license_, say)
    return Installed(agent_id=known.agent_id, organization=known.organization, changed=changed, service=served)


def uninstall(
    instance: paths.InstancePaths, *, purge: bool, force: bool, say: Say, timeout_seconds: float = 60.0
) -> bool:
    """Take the instance off this host; state is kept unless ``purge``. Returns whether there was anything to do.

    Raises:
        AgentinaError: ``PRECONDITION_FAILED`` for a user who may not; ``STATE_CONFLICT`` while tasks run, unless
            ``force``; ``SERVICE_FAILED``.

    """
    there = instance.config.exists() or (purge and instance.state.exists())
    if not there:
        return False
    doctor.require([doctor.check_writable(instance)])
    running = running_tasks(instance)
    if running and not force:
        raise errors.STATE_CONFLICT(
            what=f"Instance {instance.name!r}",
            state=f"running {units.show_count(len(running), 'task')} ({', '.join(running[:5])})",
            expected="none: run `agentina drain` and wait for them, or use --force to end them",
        )
    _stop_daemon(instance, say, timeout_seconds)
    if running:
        say(f"Ending {units.show_count(len(running), 'task')} …")
        end_tasks(instance, timeout_seconds)
    if instance.config.exists():
        if not purge and instance.state.is_dir():
            with users.acting_as(service.owner_of(instance.layout)):
                _keep_settings(instance)
                # What it was drained for is over: installed again, it is to work.
                (instance.state / "drain").unlink(missing_ok=True)
        instance.config.unlink()
        files.sync_directory(instance.config.parent)
    if purge:
        say("Deleting its state …")
        service.remove_state(instance)
    return True


def running_tasks(instance: paths.InstancePaths) -> list[str]:
    """Tasks that run, whether or not a daemon does: units of PID 1, and ids whose supervisor holds its lock."""
    found = services.task_units(instance.name) if service.is_managed(instance.layout) else []
    with users.acting_as(service.owner_of(instance.layout)):
        return found + _supervised(instance)


def _supervised(instance: paths.InstancePaths) -> list[str]:
    if not instance.tasks.is_dir():
        return []
    return sorted(path.name for path in instance.tasks.iterdir() if files.is_locked(path / "supervisor"))


def _check_host(instance: paths.InstancePaths, say: Say) -> None:
    say("Checking this host …")
    checks = list(doctor.examine_host(instance))
    for check in checks:
        if check.verdict is doctor.Verdict.WARN:
            say(f"  {check.name}: {check.message} {check.remedy}")
    doctor.require(checks)


def _activate(
    instance: paths.InstancePaths, request: Request, url: str, known: identity.Identity | None, *, say: Say
) -> identity.Identity:
    """Steps 2 to 4, but for the configuration, which is root's, and the last write."""
    pending = _pending_identity(instance, request, known, say)
    say(f"Activating with {url} …")
    with api.Client(url, ca_file=request.ca_file) as client:
        activated = client.activate(_activation(instance, request, pending.key))
    complete = msgspec.structs.replace(
        pending,
        agent_id=activated.agent_id,
        organization=activated.organization,
        control_plane_id=activated.control_plane_id,
        trusted=activated.keys,
        role=activated.role,
        labels=activated.labels,
        pending_token_sha256="",
    )
    identity.save_license(instance, activated.license)
    identity.load_license(instance, complete)  # refuses a license that the host would not accept later
    return complete


def _check_token(request: Request) -> None:
    if not request.token:
        raise errors.USAGE(problem="This instance is not activated yet: give a token with --token-file (or --token).")


def _pending_identity(
    instance: paths.InstancePaths, request: Request, known: identity.Identity | None, say: Say
) -> identity.Identity:
    """The key to redeem the token with: the one that was tried with this token before, else a new one."""
    token_hash = hashlib.sha256(request.token.encode()).hexdigest()
    if known is not None and known.pending_token_sha256 == token_hash:
        say("Going on with the activation that was begun before.")
        return known
    if known is not None:
        # Another token: were its agent made with the old key after all, that agent stays without a host.
        say("An unfinished activation with another token is dropped; a new key is made.")
    key = signing.SigningKey.generate()
    fresh = identity.Identity(seed=_base64(key.seed), pending_token_sha256=token_hash)
    try:
        identity.save(instance, fresh)
    except OSError as error:
        raise files.from_os_error(error, instance.identity) from error
    return fresh


def _activation(instance: paths.InstancePaths, request: Request, key: signing.SigningKey) -> licensing.Activate:
    from agentina.host.instance import fingerprint  # noqa: PLC0415 - only activation needs it

    return licensing.Activate(
        token=request.token,
        public_key=key.public.key,
        proof=key.sign("activation", request.token.encode()),
        hostname=socket.gethostname(),
        instance=instance.name,
        fingerprint=fingerprint.read(),
        role=request.role,
        labels=request.labels,
        max_concurrent_tasks=request.max_concurrent_tasks,
        version=agentina.__version__,
        protocol=versions.PROTOCOL_VERSION,
    )


def _known_settings(instance: paths.InstancePaths) -> config.HostConfig | None:
    """The installed configuration, or the one that uninstall kept."""
    if instance.config.exists():
        return config.load(instance)
    kept = instance.state / _KEPT_CONFIG
    try:
        return inputs.decode(files.read_bounded(kept), config.HostConfig, str(kept), limit=files.MAX_STATE_FILE)
    except FileNotFoundError:
        return None


def _keep_certificates(path: Path) -> None:
    """Make durable what may have been put there a moment ago: the configuration, which is durable, will name it."""
    try:
        files.sync_file(path)
        files.sync_directory(path.resolve().parent)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror) from error


def _keep_settings(instance: paths.InstancePaths) -> None:
    try:
        settings = config.load(instance)
    except errors.AgentinaError:
        return  # a file that cannot be read is not worth keeping, and must not keep anybody from uninstalling
    files.write_atomic(instance.state / _KEPT_CONFIG, msgspec.json.encode(settings))


def _save_new_config(instance: paths.InstancePaths, request: Request, url: str) -> None:
    if not instance.config.exists():
        config.save(instance, _wanted(request, url, None))


def _settle_config(
    instance: paths.InstancePaths, request: Request, url: str, settings: config.HostConfig | None
) -> list[str]:
    """Bring the configuration to what was explicitly asked for; everything else in it is the host owner's."""
    wanted = _wanted(request, url, settings)
    if instance.config.exists() and config.load(instance) == wanted:
        return []
    existed = instance.config.exists()
    config.save(instance, wanted)
    return [f"{'changed' if existed else 'wrote'} {instance.config}"]


def _wanted(request: Request, url: str, settings: config.HostConfig | None) -> config.HostConfig:
    base = settings or config.HostConfig(control_plane=url)
    changes: dict[str, Any] = {}
    if request.max_concurrent_tasks is not None:
        changes["max_concurrent_tasks"] = request.max_concurrent_tasks
    if request.ca_file:
        changes["ca_file"] = str(Path(request.ca_file).absolute())
    return msgspec.structs.replace(base, **changes)


def _trust_releases(instance: paths.InstancePaths, say: Say) -> None:
    """Have the host trust the control plane's releases (docs/adr/0012). An agent works without."""
    if instance.layout.release_root.exists():
        return
    from agentina.host.updating import offers  # noqa: PLC0415 - loads all of TUF

    try:
        if offers.pin_root(instance):
            say(f"Trusting the control plane's releases ({instance.layout.release_root}).")
    except errors.AgentinaError as error:
        say(f"The control plane's releases are not trusted yet: {error.message}")


def _serve(instance: paths.InstancePaths, request: Request, changed: list[str], say: Say) -> None:
    """Start the service, and wait until the control plane has heard of the agent."""
    service.run(instance, changed=changed, say=say)
    say("Waiting for the first heartbeat …")
    try:
        wait_for_heartbeat(
            instance,
            timeout_seconds=request.timeout_seconds,
            is_alive=lambda: not services.has_failed(instance.name),
        )
    except errors.AgentinaError:
        service.check_alive(instance)
        raise


def wait_for_heartbeat(
    instance: paths.InstancePaths, *, timeout_seconds: float, is_alive: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Wait until the daemon says that the control plane answered a heartbeat; its status then.

    Raises:
        AgentinaError: The last reason why not: ``DAEMON_NOT_RUNNING`` or ``CONTROL_PLANE_UNREACHABLE``.

    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            status = local.ask(instance, "status")
            if status.get("last_heartbeat_ms") is not None and status.get("state") != "offline":
                return status
            failure = errors.CONTROL_PLANE_UNREACHABLE(
                url=status.get("control_plane", ""), problem=status.get("last_error") or "no heartbeat was answered yet"
            )
        except errors.AgentinaError as error:
            failure = error
        if time.monotonic() > deadline or not is_alive():
            raise failure
        time.sleep(_LOOK_AGAIN)  # another process's state: there is nothing to await


def _note_differences(known: identity.Identity, request: Request, license_: licensing.License, say: Say) -> None:
    """Say what was asked for and is not so."""
    if request.role is not None and request.role != known.role:
        say(f"The agent's role is {known.role or 'none'}, not {request.role}: its token or activation set it.")
    missing = {key: value for key, value in request.labels.items() if known.labels.get(key) != value}
    if missing:
        shown = ", ".join(f"{key}={value}" for key, value in sorted(missing.items()))
        say(f"Not taken over: label {shown}: the token or an earlier activation set the agent's labels.")
    allowed = license_.max_concurrent_tasks_per_agent
    if request.max_concurrent_tasks is not None and request.max_concurrent_tasks > allowed:
        say(f"The license allows {units.show_count(allowed, 'task')} at once, not {request.max_concurrent_tasks}.")


def _stop_daemon(instance: paths.InstancePaths, say: Say, timeout_seconds: float) -> None:
    """End the daemon, whoever started it. Its tasks are not touched."""
    if service.is_managed(instance.layout):
        say(f"Stopping {services.unit_of(instance.name)} …")
        service.stop(instance)
    if not files.is_locked(instance.lock):
        return
    pid = local.ask(instance, "status").get("pid")
    if not isinstance(pid, int) or pid <= 1:
        raise errors.ANSWER_UNREADABLE(what="the daemon does not tell its process id")
    say(f"Stopping the daemon (process {pid}) …")
    _end_daemon(pid, instance)
    _wait_until(lambda: not files.is_locked(instance.lock), timeout_seconds, instance, f"running as process {pid}")


def _end_daemon(pid: int, instance: paths.InstancePaths) -> None:
    """Send SIGTERM to a daemon by the process id that it told: to no process but of the user whose lock it is."""
    pidfd = processes.open_pidfd(pid)
    if pidfd is None:
        return
    try:
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            if Path(f"/proc/{pid}").stat().st_uid != instance.lock.stat().st_uid:
                raise errors.ANSWER_UNREADABLE(what=f"the daemon tells of process {pid}, which is another user's")
        processes.signal_through(pidfd, signal.SIGTERM)
    finally:
        os.close(pidfd)


def end_tasks(instance: paths.InstancePaths, timeout_seconds: float) -> None:
    """End every task: by PID 1, or by its supervisor (SIGTERM to the lock's holder)."""
    from agentina.executors import process  # noqa: PLC0415 - only a forced uninstall needs it
    from agentina.executors.contract import StopReason  # noqa: PLC0415

    if service.is_managed(instance.layout):
        services.stop_tasks(instance.name)
    executor = process.ProcessExecutor(instance.state)
    with users.acting_as(service.owner_of(instance.layout)):
        for task in _supervised(instance):
            executor.stop(instance.tasks / task, StopReason.CANCELED, grace_seconds=5.0)
    _wait_until(lambda: not running_tasks(instance), timeout_seconds, instance, "still ending its tasks")


def _wait_until(done: Callable[[], bool], timeout_seconds: float, instance: paths.InstancePaths, state: str) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not done():
        if time.monotonic() > deadline:
            raise errors.STATE_CONFLICT(what=f"Instance {instance.name!r}", state=state, expected="stopped")
        time.sleep(_LOOK_AGAIN)  # a lock of another process: there is nothing to await


def _base64(raw: bytes) -> str:
    import base64  # noqa: PLC0415

    return base64.b64encode(raw).decode("ascii")
