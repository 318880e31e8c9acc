"""Where everything is (DESIGN 4.1). ``--root DIR`` or ``AGENTINA_ROOT`` re-roots every path."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

ROOT_VARIABLE: Final = "AGENTINA_ROOT"
#: Longest path of a Unix socket, with its final NUL (unix(7)).
_MAX_SOCKET_PATH: Final = 108

#: Files beside those of instances: of the owner's rules, and of the gateway where that is its usual place.
_SHARED: Final = frozenset({"policy.yaml", "gateway.yaml"})


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """All paths below one root."""

    root: Path = Path("/")

    @classmethod
    def find(cls, root: str | None = None) -> Layout:
        """The layout for ``--root``, else for ``AGENTINA_ROOT``, else the system's own."""
        chosen = root or os.environ.get(ROOT_VARIABLE) or "/"
        return cls(Path(chosen).expanduser().absolute())

    @property
    def is_system(self) -> bool:
        """Whether this is the real root, where systemd runs the daemon."""
        return self.root == Path("/")

    @property
    def config_directory(self) -> Path:
        """Holds ``<instance>.yaml`` and ``policy.yaml``."""
        return self.root / "etc/agentina"

    @property
    def policy_file(self) -> Path:
        """The host owner's rules."""
        return self.config_directory / "policy.yaml"

    @property
    def release_root(self) -> Path:
        """The root of trust for releases (TUF): root's, put there by an operator or by ``agentina install``."""
        return self.config_directory / "release-root.json"

    @property
    def runners_directory(self) -> Path:
        """Holds descriptions of runners, ``<name>.yaml``."""
        return self.config_directory / "runners.d"

    @property
    def state_directory(self) -> Path:
        """Holds one directory an instance."""
        return self.root / "var/lib/agentina"

    @property
    def cache_directory(self) -> Path:
        """Repository mirrors, shared by the instances of the host."""
        return self.root / "var/cache/agentina"

    @property
    def log_directory(self) -> Path:
        """Daemon logs where there is no journal (``--no-service``)."""
        return self.root / "var/log/agentina"

    @property
    def software_directory(self) -> Path:
        """Releases, and which of them each instance runs."""
        return self.root / "opt/agentina"

    @property
    def copies_directory(self) -> Path:
        """Copies of AI agents' command lines, one for all tasks (agentina/runners/copies.py)."""
        return self.software_directory / "runners"

    @property
    def packaged_version(self) -> Path:
        """Names the version of the package's own release."""
        return self.root / "usr/lib/agentina/release/version"

    @property
    def restore_program(self) -> Path:
        """Of the package's base: puts back who an instance is. A base older than this release has none."""
        return self.root / "usr/lib/agentina/restore"

    def instances(self) -> list[str]:
        """Names of the installed instances, sorted; PermissionError where this user may not see them."""
        try:
            found = list(self.config_directory.iterdir())
        except FileNotFoundError:
            return []
        return sorted(path.stem for path in found if path.suffix == ".yaml" and path.name not in _SHARED)

    def instance(self, name: str) -> InstancePaths:
        """The paths of one instance; ``name`` must have been checked."""
        return InstancePaths(self, name)


@dataclasses.dataclass(frozen=True, slots=True)
class InstancePaths:
    """The paths of one instance."""

    layout: Layout
    name: str

    @property
    def config(self) -> Path:
        """The instance's configuration."""
        return self.layout.config_directory / f"{self.name}.yaml"

    @property
    def state(self) -> Path:
        """The state directory (0700)."""
        return self.layout.state_directory / self.name

    @property
    def release(self) -> Path:
        """Link to the release it runs; none: the package's own. Root's: units of root's start with what it says."""
        return self.layout.software_directory / "instances" / self.name

    @property
    def wish(self) -> Path:
        """What the daemon wants the updater to do: the daemon's own file, so that root treats it as hostile."""
        return self.state / "update-wish.json"

    @property
    def updates(self) -> Path:
        """Root's: the journal of updates, downloads, logs of releases that failed. Readable to everybody."""
        return self.layout.state_directory / ".updates" / self.name

    @property
    def update_journal(self) -> Path:
        """What is under way, and what became of earlier updates."""
        return self.updates / "journal.json"

    @property
    def identity(self) -> Path:
        """Key, agent id and pinned control plane keys."""
        return self.state / "identity"

    @property
    def license(self) -> Path:
        """The signed license as received."""
        return self.state / "license"

    @property
    def identity_copy(self) -> Path:
        """Root's: identity and license as they were before the last update, deleted after some days."""
        return self.updates / "backup" / "identity.json"

    @property
    def outbox(self) -> Path:
        """Durable reports."""
        return self.state / "outbox"

    @property
    def tasks(self) -> Path:
        """One directory a task."""
        return self.state / "tasks"

    @property
    def lock(self) -> Path:
        """Held by the running daemon."""
        return self.state / "daemon.lock"

    @property
    def log(self) -> Path:
        """The daemon's log where there is no journal."""
        return self.layout.log_directory / f"{self.name}.log"

    @property
    def socket(self) -> Path:
        """The local API. Falls back to a short path when the root is too deep for a Unix socket."""
        path = self.layout.root / "run/agentina" / self.name / "agentina.sock"
        if len(os.fsencode(path)) < _MAX_SOCKET_PATH:
            return path
        return self.state / "s"
