"""Every precondition of an agent, each as a check with its remedy: what ``agentina doctor`` prints and install obeys.

A check looks at one thing and judges it. ``fail`` means an agent cannot work here; ``warn`` means that it can, with
something missing. Nothing here changes anything.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.client import api, local
from agentina.host.instance import config, identity, service
from agentina.protocol import units
from agentina.system import children, clock, paths, services, users

_OLDEST_PYTHON: Final = (3, 11)
#: The first git with partial clone and worktree behaviour that the workspaces rely on.
_OLDEST_GIT: Final = (2, 25)
#: The systemd of Debian 12, which the units are written for.
_OLDEST_SYSTEMD: Final = 252
#: cgroup v2 controllers that the limits of tasks need (Documentation/admin-guide/cgroup-v2.rst).
_CONTROLLERS: Final = frozenset({"cpu", "io", "memory", "pids"})
#: Below this no state file can be trusted to be written.
_LEAST_DISK: Final = 64 << 20
_LEAST_MEMORY: Final = 256 << 20
_LEAST_FILES: Final = 1024
#: Clock difference, in milliseconds, that people should know about; the agent adjusts to it by itself.
_CLOCK_WARN_MS: Final = 30_000
_OUTBOX_WARN: Final = 256 << 20
_MAX_SOCKET_PATH: Final = 108
_LOOK_AS_ROOT: Final = "Run `sudo agentina doctor` to have this looked at, too."


class Verdict(enum.Enum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One precondition, judged."""

    name: str
    verdict: Verdict
    #: What was found, in one sentence.
    message: str
    #: What to do; empty when nothing is to be done.
    remedy: str = ""


def ok(name: str, message: str) -> Check:
    """A check that holds."""
    return Check(name, Verdict.OK, message)


def warn(name: str, message: str, remedy: str) -> Check:
    """A check whose failing leaves something out."""
    return Check(name, Verdict.WARN, message, remedy)


def fail(name: str, message: str, remedy: str) -> Check:
    """A check without which nothing works."""
    return Check(name, Verdict.FAIL, message, remedy)


def failed(name: str, error: errors.AgentinaError) -> Check:
    """A check that met an error of the catalogue."""
    return fail(name, error.message, error.remedy)


def examine(instance: paths.InstancePaths, *, control_plane: str = "", ca_file: str = "") -> Iterator[Check]:
    """All checks, in the order a person would look, each as soon as it is known.

    Args:
        instance: Whose preconditions; it need not be installed.
        control_plane: Its address; the installed configuration's unless given.
        ca_file: As in the configuration.

    """
    installed = instance.config.exists()
    yield from examine_host(instance, installed=installed)
    settings: config.HostConfig | None = None
    if installed:
        settings, check = _configuration(instance)
        yield check
    url = control_plane or (settings.control_plane if settings else "")
    if url:
        yield from check_control_plane(url, ca_file or (settings.ca_file if settings else ""))
    yield check_policy(instance.layout.policy_file)
    if settings is not None and settings.gateway:
        yield check_gateway(Path(settings.gateway), instance)
    if installed:
        yield check_identity(instance)
        if service.is_managed(instance.layout):
            yield check_unit(instance)
        yield check_daemon(instance)
        yield check_outbox(instance.outbox)


def examine_host(instance: paths.InstancePaths, *, installed: bool = False) -> Iterator[Check]:
    """The checks that need neither an installation nor a network."""
    managed = service.is_managed(instance.layout)
    plain: tuple[Callable[[], Check], ...] = (
        check_python,
        lambda: check_writable(instance, installed=installed),
        lambda: check_socket_path(instance),
        lambda: check_disk(instance.layout),
        check_memory,
        check_git,
        check_controllers if managed else check_cgroup,
        check_pressure,
        lambda: check_systemd(instance.layout),
        *((check_package, lambda: check_release(instance)) if managed else ()),
        check_open_files,
    )
    for check in plain:
        yield check()


def check_python() -> Check:
    """The interpreter is new enough."""
    found = sys.version_info[:3]
    shown = ".".join(map(str, found))
    if found[:2] < _OLDEST_PYTHON:
        return fail("python", f"Python {shown}; 3.11 or newer is needed.", "Install a newer Python.")
    return ok("python", f"Python {shown}.")


def check_writable(instance: paths.InstancePaths, *, installed: bool = False) -> Check:
    """Configuration, state and cache directories can be made or written by this user.

    Of an installed service they are its own user's, and whoever looks at it need not be able to.
    """
    layout = instance.layout
    wanted = (layout.config_directory, instance.state, layout.cache_directory, instance.socket.parent)
    refused = [str(path) for path in wanted if not _is_writable(path)]
    if refused and installed and service.is_managed(layout):
        return warn("directories", "This user is not the agent's, whose they are.", _LOOK_AS_ROOT)
    if refused:
        remedy = "Run as root (sudo), as the user the agent runs as, or choose a --root you may write to."
        return fail("directories", f"Not writable by this user: {', '.join(refused)}.", remedy)
    return ok("directories", f"Configuration, state and cache below {layout.root} can be written.")


def check_socket_path(instance: paths.InstancePaths) -> Check:
    """The local socket's path fits into what the kernel takes (unix(7): 108 bytes)."""
    length = len(os.fsencode(instance.socket))
    if length >= _MAX_SOCKET_PATH:
        return fail("socket", f"The path of the local socket has {length} bytes.", "Choose a shorter --root.")
    return ok("socket", f"Local socket {instance.socket}.")


def check_disk(layout: paths.Layout) -> Check:
    """There is room for state and workspaces."""
    usage = shutil.disk_usage(_existing(layout.state_directory))
    free = f"{units.show_size(usage.free)} of {units.show_size(usage.total)} free below {layout.state_directory}."
    remedy = "Free space, or put the state directory on a larger disk; no work is taken below the reserve."
    if usage.free < _LEAST_DISK:
        return fail("disk", free, remedy)
    reserve = config.HostConfig(control_plane="").disk_reserve
    return warn("disk", free, remedy) if usage.free < reserve else ok("disk", free)


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """There is memory to give to tasks."""
    available = _meminfo(meminfo.read_text("ascii"))
    if available is None:
        return warn("memory", f"{meminfo} does not tell the memory available.", "Use Linux 3.14 or newer.")
    found = f"{units.show_size(available)} available."
    if available < _LEAST_MEMORY:
        return warn("memory", found, "Free memory, or lower memory_reserve; no work is taken below the reserve.")
    return ok("memory", found)


def check_git() -> Check:
    """Workspaces can be made: git is there."""
    code, said = children.run(["git", "--version"])
    remedy = "Install git; jobs without `workspace.git` run all the same."
    if code:
        return warn("git", "There is no git on the PATH.", remedy)
    version = _version(said)
    if version < _OLDEST_GIT:
        return warn("git", f"{said.strip()}; 2.25 or newer is needed.", remedy)
    return ok("git", f"{said.strip()}.")


def check_cgroup(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Check:
    """A delegated cgroup v2 subtree, in which the kernel itself holds tasks to their limits."""
    remedy = "Run under systemd with Delegate=yes. Until then limits are kept by watching processes, not by the kernel."
    if not (root / "cgroup.controllers").is_file():
        return warn("cgroup", "There is no cgroup v2 here.", remedy)
    lines = own.read_text().splitlines()
    name = next((line[3:] for line in lines if line.startswith("0::")), "/")
    directory = root / name.lstrip("/")
    if not os.access(directory / "cgroup.procs", os.W_OK) or not os.access(directory, os.W_OK):
        return warn("cgroup", f"cgroup v2 is here, but {name} is not delegated to this user.", remedy)
    return ok("cgroup", f"cgroup v2, {name} is writable.")


def check_controllers(root: Path = Path("/sys/fs/cgroup")) -> Check:
    """The cgroup v2 controllers with which systemd holds tasks to their limits."""
    remedy = "Boot with systemd.unified_cgroup_hierarchy=1 and without cgroup_disable=."
    try:
        found = set((root / "cgroup.controllers").read_text("ascii").split())
    except OSError:
        # Whether a task's unit runs is read there: without it every task would count as lost.
        return fail("cgroup", "There is no cgroup v2 at /sys/fs/cgroup.", remedy)
    missing = sorted(_CONTROLLERS - found)
    if missing:
        remedy += " Until then those limits do not hold."
        return warn("cgroup", f"cgroup v2 without the controllers {', '.join(missing)}.", remedy)
    return ok("cgroup", f"cgroup v2 with {', '.join(sorted(_CONTROLLERS))}.")


def check_pressure(root: Path = Path("/proc/pressure")) -> Check:
    """The kernel tells pressure (PSI), by which a host under load takes less work."""
    try:
        (root / "memory").read_bytes()
    except OSError:
        remedy = "Boot with psi=1. Until then only free memory limits what is taken."
        return warn("pressure", "The kernel does not tell pressure (PSI).", remedy)
    return ok("pressure", "The kernel tells pressure (PSI).")


def check_systemd(layout: paths.Layout) -> Check:
    """Something starts the daemon at boot and again after a crash."""
    if not layout.is_system:
        return ok("service", "Re-rooted: you start the daemon yourself.")
    if not services.runs_here():
        remedy = "Start `agentina daemon` by the service manager that this system has."
        return warn("service", "PID 1 is not systemd.", remedy)
    if not services.has_template():
        return warn("service", f"{services.TEMPLATE} is not installed.", "Install the agentina package.")
    version = services.version()
    if version < _OLDEST_SYSTEMD:
        remedy = "Use Debian 12, Ubuntu 24.04 or newer."
        return fail("service", f"systemd {version}; {_OLDEST_SYSTEMD} or newer is needed.", remedy)
    return ok("service", f"systemd {version}, {services.TEMPLATE} is installed.")


def check_package(root: Path = Path("/")) -> Check:
    """The daemons' user is there, and may ask PID 1 to run tasks: units, polkit's rule, the system bus."""
    if users.find(services.USER) is None:
        remedy = "Run `sudo systemd-sysusers agentina.conf`, or install the agentina package again."
        return fail("package", f"There is no user {services.USER}.", remedy)
    lacks = {
        services.TASK_TEMPLATE: services.has_template(root, name=services.TASK_TEMPLATE),
        "polkit's rule for agentina": services.has_rule(root),
        "the system bus (dbus)": (root / "run/dbus/system_bus_socket").exists(),
    }
    missing = [what for what, there in lacks.items() if there is False]
    if missing:
        remedy = "Install the agentina package again, with dbus and polkitd. Until then tasks share the daemon's user."
        return warn("package", f"Missing: {', '.join(missing)}.", remedy)
    if None in lacks.values():
        return warn("package", "This user may not see whether polkit's rule is here.", _LOOK_AS_ROOT)
    return ok("package", f"User {services.USER}, {services.TASK_TEMPLATE} and polkit's rule are here.")


def check_release(instance: paths.InstancePaths) -> Check:
    """The release that the instance is bound to is there."""
    link = instance.release
    if not link.is_symlink():
        return ok("release", "The package's own.")
    if not link.exists():
        remedy = f"Delete {link}: the package's own release runs then (it does already, for want of this one)."
        return warn("release", f"{link} leads to {link.readlink()}, which does not exist.", remedy)
    return ok("release", f"Bound to {link.resolve().name}.")


def check_unit(instance: paths.InstancePaths) -> Check:
    """The instance's unit is enabled and runs."""
    unit = services.unit_of(instance.name)
    state = services.state_of(instance.name)
    if not services.is_active(instance.name):
        return warn("unit", f"{unit} is {state}.", f"Run `systemctl start {unit}`; `agentina logs` says why it ended.")
    if not services.is_enabled(instance.name):
        return warn("unit", f"{unit} is {state}, but does not start at boot.", f"Run `sudo systemctl enable {unit}`.")
    return ok("unit", f"{unit} is enabled and {state}.")


def check_open_files() -> Check:
    """Enough files may be open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
        return warn("open files", f"At most {soft} files may be open.", "Raise the limit (ulimit -n, LimitNOFILE=).")
    return ok("open files", f"At most {soft} files may be open." if soft > 0 else "No limit.")


def check_control_plane(url: str, ca_file: str) -> Iterator[Check]:
    """It is reached, it is what it should be, and the clocks agree."""
    try:
        with api.Client(url, ca_file=ca_file, timeout_seconds=10.0, patience=api.Patience(attempts=2)) as client:
            before = clock.SystemClock().wall_ms()
            answer = client.health()
            after = clock.SystemClock().wall_ms()
    except errors.AgentinaError as error:
        yield failed("control plane", error)
        return
    yield ok("control plane", f"{client.address} answers in {units.show_duration((after - before) / 1000)}.")
    yield check_clock(answer.headers.get("agentina-time", ""), before, after)


def check_clock(told: str, before_ms: int, after_ms: int) -> Check:
    """The host's clock against the control plane's, as told in a request that lasted from ``before`` to ``after``."""
    told_ms = clock.read_ms(told)
    if told_ms is None:
        return warn("clock", "The control plane did not tell its time.", "Check that no proxy strips Agentina-Time.")
    # Its clock was read somewhere between; only what lies outside that span is a difference.
    behind, ahead = told_ms - after_ms, before_ms - told_ms
    difference = max(behind, ahead, 0)
    if difference > _CLOCK_WARN_MS:
        side = "behind" if behind > ahead else "ahead of"
        message = f"This host is {units.show_duration(difference / 1000)} {side} the control plane."
        return warn("clock", message, "Correct the clock (timedatectl); the agent adjusts, people reading logs do not.")
    return ok("clock", "Agrees with the control plane.")


def check_policy(path: Path) -> Check:
    """The host owner's policy can be read."""
    if not path.exists():
        return ok("policy", f"There is no {path}: the defaults hold (`agentina policy show`).")
    from agentina.host.instance import policy  # noqa: PLC0415 - install and doctor must work where the daemon does not

    try:
        policy.load(path)
    except errors.AgentinaError as error:
        return failed("policy", error)
    return ok("policy", f"{path} is valid.")


def check_gateway(path: Path, instance: paths.InstancePaths) -> Check:
    """Settings of the gateway, without which no job with a budget runs, and the keys they name.

    Only the daemon sees the keys that systemd hands over, so it is asked. Of one that does not run, or that this user
    may not ask, the unit tells which ones it would get; whether they can be decrypted nobody knows before.
    """
    from agentina.gateway import settings  # noqa: PLC0415 - only hosts with a gateway pay for its code

    try:
        told = settings.read(path)
    except errors.AgentinaError as error:
        return failed("gateway", error)
    try:
        status = local.ask(instance, "status")
    except errors.AgentinaError:
        handed = services.credentials_of(instance.name) if service.is_managed(instance.layout) else set()
        missing = settings.missing_keys(told, path, handed)
        if missing:
            return failed("gateway", errors.GATEWAY_UNUSABLE(problem=f"there is no key {', '.join(missing)}"))
        from_unit = f"; systemd is to hand over {', '.join(sorted(handed))}" if handed else ""
        return ok("gateway", f"{path} is valid and its keys are there{from_unit}. Only a running daemon can use them.")
    for problem in status.get("problems", []):
        if problem["code"] == errors.GATEWAY_UNUSABLE.code:
            return fail("gateway", problem["message"], problem["remedy"])
    return ok("gateway", f"{path} is valid, and the daemon can use it and its keys.")


def check_identity(instance: paths.InstancePaths) -> Check:
    """Key, agent id and license are there and belong together."""
    try:
        known = identity.load(instance)
        if known is None or not known.agent_id:
            remedy = "Run `agentina install` again with the same token."
            return fail("identity", "Activation is not finished.", remedy)
        license_ = identity.load_license(instance, known)
    except errors.AgentinaError as error:
        return failed("identity", error)
    except OSError as error:
        return _unseen("identity", instance.state, error)
    if license_.expires_ms < clock.SystemClock().wall_ms():
        return failed("identity", errors.LICENSE_EXPIRED(expired_at=clock.show_time(license_.expires_ms)))
    until = clock.show_time(license_.expires_ms)
    return ok("identity", f"Agent {known.agent_id} of {known.organization}, licensed until {until}.")


def check_daemon(instance: paths.InstancePaths) -> Check:
    """The daemon answers."""
    try:
        status = local.ask(instance, "status")
    except errors.AgentinaError as error:
        return warn("daemon", error.message, error.remedy)
    return ok("daemon", f"Runs as process {status.get('pid')}, {status.get('state')}.")


def check_outbox(path: Path) -> Check:
    """Reports that wait on disk are within reason."""
    size = 0
    try:
        size = sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else 0
        size = path.stat().st_size if path.is_file() else size
    except OSError as error:
        return _unseen("outbox", path, error)
    found = f"{units.show_size(size)} of reports on disk."
    if size > _OUTBOX_WARN:
        return warn("outbox", found, "Restore the connection to the control plane; they are sent then.")
    return ok("outbox", found)


def to_document(checks: list[Check]) -> dict[str, object]:
    """The form of ``agentina doctor --json``."""
    lines = [{"name": c.name, "verdict": c.verdict.value, "message": c.message, "remedy": c.remedy} for c in checks]
    return {"healthy": not any(check.verdict is Verdict.FAIL for check in checks), "checks": lines}


def require(checks: list[Check]) -> None:
    """Raise ``PRECONDITION_FAILED`` naming every failed check, with what to do."""
    bad = [check for check in checks if check.verdict is Verdict.FAIL]
    if bad:
        raise errors.PRECONDITION_FAILED(
            problems=" ".join(f"{c.name}: {c.message} {c.remedy}" for c in bad).rstrip(".")
        )


def _configuration(instance: paths.InstancePaths) -> tuple[config.HostConfig | None, Check]:
    try:
        return config.load(instance), ok("configuration", f"{instance.config} is valid.")
    except errors.AgentinaError as error:
        return None, failed("configuration", error)
    except OSError as error:
        return None, _unseen("configuration", instance.config, error)


def _unseen(name: str, path: Path, error: OSError) -> Check:
    """What this user may not see is not thereby at fault."""
    if isinstance(error, PermissionError):
        return warn(name, f"This user may not read {path}.", _LOOK_AS_ROOT)
    return fail(name, f"{path}: {error.strerror}.", "Check the disk and the file's owner (`ls -l`).")


def _existing(path: Path) -> Path:
    """The nearest ancestor that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def _is_writable(path: Path) -> bool:
    try:
        nearest = _existing(path)
    except PermissionError:
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _meminfo(text: str) -> int | None:
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _version(said: str) -> tuple[int, int]:
    parts = [part for word in said.split() for part in [word.split(".")] if len(part) > 1 and part[0].isdigit()]
    return (int(parts[0][0]), int(parts[0][1])) if parts and parts[0][1].isdigit() else (0, 0)
