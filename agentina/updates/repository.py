"""A release repository: a directory that any static web server can serve, and the acts of those who sign it.

::

    metadata/  1.root.json 2.root.json ...  7.targets.json  31.snapshot.json  timestamp.json
    targets/   channels/<sha256>.stable.json   releases/0.4.0/<sha256>.agentina-0.4.0-amd64.tar.gz ...
    drafts/    8.targets.json     metadata that needs further signatures; not served

Who signs what (consistent snapshots, TUF specification 7): the *root* and *targets* roles are offline and have
thresholds; *snapshot* and *timestamp* are one online key's. Offline acts write ``N.root.json`` or ``N.targets.json``.
:meth:`Repository.sign_online` makes snapshot and timestamp follow whatever lies there and renews them before they
expire: it may be repeated at any time, and is what the control plane does in the background.

Order of writes, so that a reader or a power cut in between sees a whole repository: files of targets, then
``N.targets.json``, then ``N.snapshot.json``, and last ``timestamp.json``, each replaced at once and durable.

Failures: metadata in the directory that its root does not vouch for is never built upon (``UPDATE_UNTRUSTED``); a newer
``targets`` whose files have not all arrived is left for later; two writers exclude each other (``STATE_CONFLICT``).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from tuf.api import exceptions, metadata

from agentina import errors
from agentina.protocol import names
from agentina.system import files
from agentina.updates import channels, ed25519, manifests

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
ROLES: Final = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
#: Lifetimes of the online roles. Each is signed again when half of it is over.
SNAPSHOT_LIFE: Final = timedelta(days=7)
TIMESTAMP_LIFE: Final = timedelta(days=3)
#: Lifetime of targets; each publication begins a new one.
TARGETS_LIFE: Final = timedelta(days=365)
ROOT_LIFE: Final = timedelta(days=365)

_CLASSES: Final[dict[str, type[metadata.Signed]]] = {
    ROOT: metadata.Root, TARGETS: metadata.Targets, SNAPSHOT: metadata.Snapshot, TIMESTAMP: metadata.Timestamp,
}  # fmt: skip
_MAX_METADATA: Final = 5_000_000
#: Versions of targets and snapshot that stay for clients in the middle of a refresh, and to look at.
_KEPT: Final = 10
_HASH: Final = "sha256"
_VERSIONED: Final = re.compile(r"([1-9]\d{0,9})\.(root|targets|snapshot)\.json", re.ASCII)

Document = metadata.Metadata[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """What became of metadata that was signed."""

    role: str
    version: int
    #: Where it is: in force, or a draft.
    path: Path
    #: Signatures that are still missing; 0: it is in force.
    missing: int


class Repository:
    """A repository's directory. Every act reads the present state; nothing is remembered between them."""

    def __init__(self, directory: Path) -> None:
        ed25519.register()
        self.directory = directory
        self._metadata = directory / "metadata"
        self._targets = directory / "targets"
        self._drafts = directory / "drafts"

    # --- reading -----------------------------------------------------------------------------------------------------

    def root(self) -> Document:
        """The root in force: the end of the chain of those in the directory.

        Raises:
            AgentinaError: ``STATE_CONFLICT`` (there is none yet), ``UPDATE_UNTRUSTED``.

        """
        return self._roots()[-1]

    def _roots(self) -> list[Document]:
        """The verified chain of roots, the first one first. Raises like :meth:`root`."""
        numbers = self._numbers(ROOT)
        if not numbers:
            raise errors.STATE_CONFLICT(
                what=f"The repository {self.directory}", state="without a root",
                expected="one made with `agentina release keys root`",
            )  # fmt: skip
        chain: list[Document] = []
        for number in numbers:
            document = self._load(ROOT, number)
            previous = cast("metadata.Root", chain[-1].signed) if chain else None
            if previous is not None and number != previous.version + 1:
                raise _untrusted(f"root {previous.version + 1} is missing")
            result = document.signed.get_root_verification_result(previous, document.signed_bytes, document.signatures)
            if not result.verified:
                raise _untrusted(f"root {number} is not signed by enough keys of the root before and its own")
            chain.append(document)
        return chain

    def targets(self) -> Document | None:
        """The newest targets metadata that the root vouches for, whether its files are there or not."""
        return self._newest_targets(self.root(), complete=False)

    def channel(self, name: str) -> channels.Channel:
        """What channel ``name`` offers; an empty one where there is none.

        Raises:
            AgentinaError: ``INPUT_INVALID``, ``STATE_CONFLICT``, ``UPDATE_UNTRUSTED``, ``INPUT_UNREADABLE``.

        """
        newest = self.targets()
        return self._channel(name, cast("metadata.Targets", newest.signed) if newest else metadata.Targets())

    def announced(self) -> list[channels.Channel]:
        """What all channels offer for which every file is there. Raises like :meth:`channel`."""
        newest = self._newest_targets(self.root(), complete=True)
        return [] if newest is None else self._channels(cast("metadata.Targets", newest.signed))

    def expiries(self) -> dict[str, datetime]:
        """When the metadata in force ends, by role."""
        found = {ROOT: self.root().signed.expires}
        newest = self.targets()
        if newest is not None:
            found[TARGETS] = newest.signed.expires
        for role in (SNAPSHOT, TIMESTAMP):
            document = self._verified(role, self.root())
            if document is not None:
                found[role] = document.signed.expires
        return found

    # --- offline acts ------------------------------------------------------------------------------------------------

    def publish(
        self, build: Path, *, channel: str, signers: Sequence[ed25519.Signer], now: datetime
    ) -> Signed:  # fmt: skip
        """Add the build in directory ``build`` to a channel.

        Raises:
            AgentinaError: ``STATE_CONFLICT``, ``INPUT_INVALID``, ``RELEASE_KEY_REFUSED``, ``UPDATE_UNTRUSTED`` ...

        """
        manifest = manifests.read(build)
        prefix = f"releases/{manifest.version}/"
        release = channels.Release(
            version=manifest.version, title=manifest.title, built=manifest.built, notes=prefix + manifest.notes.name,
            archives={name: prefix + file.name for name, file in sorted(manifest.archives.items())},
            sboms={name: prefix + file.name for name, file in sorted(manifest.sboms.items())},
        )  # fmt: skip

        def change(targets: metadata.Targets) -> None:
            self._set_channel(targets, channels.add(self._channel(channel, targets), release))
            for file in manifest.files:
                known = targets.targets.get(prefix + file.name)
                if known is not None and known.hashes[_HASH] != file.sha256:
                    raise errors.STATE_CONFLICT(
                        what=f"{prefix}{file.name}", state="published with other content",
                        expected="a new version for a new build",
                    )  # fmt: skip
                self._place(targets, prefix + file.name, build / file.name)

        return self._change_targets(change, signers, now)

    def promote(
        self, version: str, *, source: str, target: str, signers: Sequence[ed25519.Signer], now: datetime
    ) -> Signed:  # fmt: skip
        """List a release of channel ``source`` in channel ``target`` too. Raises like :meth:`publish`."""

        def change(targets: metadata.Targets) -> None:
            release = self._channel(source, targets).find(version)
            self._set_channel(targets, channels.add(self._channel(target, targets), release))

        return self._change_targets(change, signers, now)

    def withdraw(
        self, version: str, *, channel: str | None, reason: str, signers: Sequence[ed25519.Signer], now: datetime
    ) -> Signed:  # fmt: skip
        """Take a release out of one channel, or out of all. Raises like :meth:`publish`, and ``RELEASE_UNKNOWN``."""

        def change(targets: metadata.Targets) -> None:
            listed = [self._channel(name, targets) for name in names.CHANNELS]
            chosen = [
                one for one in listed
                if (one.channel == channel if channel else any(each.version == version for each in one.releases))
            ]  # fmt: skip
            if not chosen:
                raise errors.RELEASE_UNKNOWN(what=f"release {version}", where="any channel")
            for one in chosen:
                self._set_channel(targets, channels.withdraw(one, version, reason=reason, now=_show(now)))
            if not any(release.version == version for one in self._channels(targets) for release in one.releases):
                for name in [name for name in targets.targets if name.startswith(f"releases/{version}/")]:
                    del targets.targets[name]

        return self._change_targets(change, signers, now)

    def renew(self, *, signers: Sequence[ed25519.Signer], now: datetime, rotated: bool = False) -> Signed:
        """Sign the targets metadata anew as it is, with a new lifetime.

        Args:
            signers: Keys of the targets role.
            now: The time.
            rotated: Also take content over that only an earlier root vouches for: after the keys of the role were
                replaced. Whoever says so has looked at the content.

        Raises:
            AgentinaError: Like :meth:`publish`.

        """
        return self._change_targets(lambda _: None, signers, now, rotated=rotated)

    def offer(self, role: str, content: metadata.Signed, signers: Sequence[ed25519.Signer]) -> Signed:
        """Sign new metadata; put it in force if that is enough, else leave it as a draft.

        Raises:
            AgentinaError: ``RELEASE_KEY_REFUSED`` for a key that may not sign it.

        """
        document: Document = metadata.Metadata(content)
        return self._sign(role, document, signers)

    def sign_draft(self, path: Path, signers: Sequence[ed25519.Signer]) -> Signed:
        """Add signatures to a draft; it comes into force with the last one that it needs.

        Raises:
            AgentinaError: ``INPUT_UNREADABLE``, ``STATE_CONFLICT`` (outdated by another), ``RELEASE_KEY_REFUSED``.

        """
        match = _VERSIONED.fullmatch(path.name)
        if match is None or match[2] == SNAPSHOT:
            raise errors.INPUT_UNREADABLE(where=str(path), problem="expected N.root.json or N.targets.json")
        document = _parse(match[2], _read(path), str(path))
        with self._alone():
            return self._sign(match[2], document, signers)

    # --- the online act ----------------------------------------------------------------------------------------------

    def sign_online(self, signer: ed25519.Signer, *, now: datetime) -> bool:
        """Let snapshot and timestamp follow the newest targets, and renew them when half their lifetime is over.

        Returns:
            Whether anything was written.

        Raises:
            AgentinaError: ``STATE_CONFLICT``, ``UPDATE_UNTRUSTED``, ``RELEASE_KEY_REFUSED``, ``DISK_FULL`` ...

        """
        with self._alone():
            root = self.root()
            for role in (SNAPSHOT, TIMESTAMP):
                _check_key(cast("metadata.Root", root.signed), role, signer)
            targets = self._newest_targets(root, complete=True)
            if targets is None:
                return False
            snapshot, is_new = self._next_snapshot(root, targets, now)
            if is_new:
                self._write_online(SNAPSHOT, snapshot, signer)
            timestamp = self._next_timestamp(root, snapshot, now)
            if timestamp is None:
                return False
            self._write_online(TIMESTAMP, timestamp, signer)
            self._drop_old(SNAPSHOT, in_force=snapshot.signed.version)
            return True

    def _next_snapshot(self, root: Document, targets: Document, now: datetime) -> tuple[Document, bool]:
        """The snapshot for ``targets``, and whether it is a new one."""
        entry = metadata.MetaFile.from_data(
            targets.signed.version, self._path(TARGETS, targets.signed.version).read_bytes(), [_HASH]
        )
        present = self._verified(SNAPSHOT, root)
        if present is not None:
            is_same = present.signed.meta.get("targets.json") == entry
            if is_same and present.signed.expires - now > SNAPSHOT_LIFE / 2:
                return present, False
        version = max(self._numbers(SNAPSHOT), default=0) + 1
        new = metadata.Snapshot(version=version, expires=_whole(now + SNAPSHOT_LIFE), meta={"targets.json": entry})
        return metadata.Metadata(new), True

    def _next_timestamp(self, root: Document, snapshot: Document, now: datetime) -> Document | None:
        """The timestamp for ``snapshot``; None: the present one does."""
        content = self._path(SNAPSHOT, snapshot.signed.version).read_bytes()
        entry = metadata.MetaFile.from_data(snapshot.signed.version, content, [_HASH])
        present = self._verified(TIMESTAMP, root)
        is_same = present is not None and present.signed.snapshot_meta == entry
        if present is not None and is_same and present.signed.expires - now > TIMESTAMP_LIFE / 2:
            return None
        version = _version_of(self._path(TIMESTAMP, 0)) + 1
        new = metadata.Timestamp(version=version, expires=_whole(now + TIMESTAMP_LIFE), snapshot_meta=entry)
        return metadata.Metadata(new)

    def _write_online(self, role: str, document: Document, signer: ed25519.Signer) -> None:
        document.sign(signer)
        self._write(self._path(role, document.signed.version), document.to_bytes())

    # --- how offline acts change targets -----------------------------------------------------------------------------

    def _change_targets(
        self, change: Callable[[metadata.Targets], None], signers: Sequence[ed25519.Signer], now: datetime,
        *, rotated: bool = False,
    ) -> Signed:  # fmt: skip
        with self._alone():
            roots = self._roots()
            root = roots[-1]
            newest = self._newest_targets(*(reversed(roots) if rotated else [root]), complete=False)
            targets = metadata.Targets() if newest is None else copy.deepcopy(newest.signed)
            for signer in signers:
                # Before anything is written for a signature that will not count.
                _check_key(cast("metadata.Root", root.signed), TARGETS, signer)
            change(targets)
            targets.version = max(self._numbers(TARGETS), default=0) + 1
            targets.expires = _whole(now + TARGETS_LIFE)
            return self._sign(TARGETS, metadata.Metadata(targets), signers)

    def _sign(self, role: str, document: Document, signers: Sequence[ed25519.Signer]) -> Signed:
        """Sign; install or keep as a draft. The caller holds the lock."""
        version = document.signed.version
        numbers = self._numbers(role)
        if version != max(numbers, default=0) + 1:
            raise errors.STATE_CONFLICT(
                what=f"{version}.{role}.json", state="outdated" if version <= max(numbers, default=0) else "too early",
                expected=f"version {max(numbers, default=0) + 1}",
            )  # fmt: skip
        previous = cast("metadata.Root", self.root().signed) if self._numbers(ROOT) else None
        for signer in signers:
            self._check_signer(role, document, previous, signer)
            document.sign(signer, append=True)
        missing = _missing(role, document, previous)
        draft = self._drafts / f"{version}.{role}.json"
        path = draft if missing else self._path(role, version)
        self._write(path, document.to_bytes())
        if not missing:
            draft.unlink(missing_ok=True)
            if role == TARGETS:
                self._drop_old(TARGETS, in_force=version)
                self._drop_unlisted()
        return Signed(role=role, version=version, path=path, missing=missing)

    @staticmethod
    def _check_signer(
        role: str, document: Document, previous: metadata.Root | None, signer: ed25519.Signer
    ) -> None:  # fmt: skip
        """A root may be signed by the keys of the root before and by its own, other metadata by the root's."""
        owners = [one for one in (previous, document.signed if role == ROOT else None) if one is not None]
        if not any(signer.public_key.keyid in owner.roles[role].keyids for owner in owners):
            raise _not_a_key_of(role, signer)

    def _place(self, targets: metadata.Targets, name: str, source: Path | bytes) -> None:
        """Put a target's file in its place and list it."""
        if isinstance(source, bytes):
            entry = metadata.TargetFile.from_data(name, source, [_HASH])
        else:
            entry = metadata.TargetFile.from_file(name, str(source), [_HASH])
        path = self._target_path(entry)
        if not _is_there(path, entry):
            _ensure(path.parent)
            if isinstance(source, bytes):
                files.write_atomic(path, source, mode=0o644)
            else:
                _copy(source, path)
        targets.targets[name] = entry

    def _set_channel(self, targets: metadata.Targets, channel: channels.Channel) -> None:
        self._place(targets, channels.path_of(channel.channel), channels.encode(channel))

    def _channel(self, name: str, targets: metadata.Targets) -> channels.Channel:
        entry = targets.targets.get(channels.path_of(name))
        if entry is None:
            return channels.Channel(channel=name)
        path = self._target_path(entry)
        content = _read(path)
        try:
            entry.verify_length_and_hashes(content)
        except exceptions.LengthOrHashMismatchError as error:
            raise _untrusted(f"{path} was changed after it was signed") from error
        return channels.decode(content, name)

    def _channels(self, targets: metadata.Targets) -> list[channels.Channel]:
        return [self._channel(name, targets) for name in names.CHANNELS]

    # --- files -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Exclude other writers."""
        for directory in (self._metadata, self._targets, self._drafts):
            _ensure(directory)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.exclusive_lock(self.directory / "lock"))
            except BlockingIOError as error:
                raise errors.STATE_CONFLICT(
                    what=f"The repository {self.directory}", state="being changed by somebody else",
                    expected="one writer at a time",
                ) from error  # fmt: skip
            yield

    def _newest_targets(self, *roots: Document, complete: bool) -> Document | None:
        """The newest targets that one of ``roots`` vouches for; with ``complete`` the newest whose files are all there.

        Raises:
            AgentinaError: ``UPDATE_UNTRUSTED`` when there are some, and none of them is to be trusted.

        """
        numbers = self._numbers(TARGETS)
        for number in reversed(numbers):
            document = self._load(TARGETS, number)
            if not any(_is_signed(TARGETS, document, root) for root in roots):
                continue
            entries = document.signed.targets.values()
            if not complete or all(_is_there(self._target_path(entry), entry) for entry in entries):
                return document
        if numbers and not complete:
            raise _untrusted("no targets metadata in it is signed by enough of the root's keys")
        return None

    def _verified(self, role: str, root: Document) -> Document | None:
        """The snapshot or timestamp in force, if the root vouches for it."""
        numbers = self._numbers(role) if role == SNAPSHOT else [0]
        path = self._path(role, numbers[-1]) if numbers else None
        if path is None or not path.exists():
            return None
        try:
            document = _parse(role, _read(path), str(path))
        except errors.AgentinaError:
            # A damaged file of an online role is simply made anew.
            return None
        return document if _is_signed(role, document, root) else None

    def _numbers(self, role: str) -> list[int]:
        """The versions of a role's files, sorted."""
        if not self._metadata.is_dir():
            return []
        matches = [_VERSIONED.fullmatch(path.name) for path in self._metadata.iterdir()]
        return sorted(int(match[1]) for match in matches if match is not None and match[2] == role)

    def _load(self, role: str, number: int) -> Document:
        path = self._path(role, number)
        document = _parse(role, _read(path), str(path))
        if document.signed.version != number:
            raise _untrusted(f"{path} holds version {document.signed.version}")
        return document

    def _path(self, role: str, number: int) -> Path:
        return self._metadata / ("timestamp.json" if role == TIMESTAMP else f"{number}.{role}.json")

    def _target_path(self, entry: metadata.TargetFile) -> Path:
        directory, _, name = entry.path.rpartition("/")
        return self._targets / directory / f"{entry.hashes[_HASH]}.{name}"

    def _write(self, path: Path, content: bytes) -> None:
        _ensure(path.parent)
        files.write_atomic(path, content, mode=0o644)

    def _drop_old(self, role: str, *, in_force: int) -> None:
        for number in self._numbers(role):
            if number <= in_force - _KEPT:
                self._path(role, number).unlink(missing_ok=True)

    def _drop_unlisted(self) -> None:
        """Delete files that none of the kept versions lists. Drafts list files too."""
        listed: set[Path] = set()
        for path in [*self._metadata.glob(f"*.{TARGETS}.json"), *self._drafts.glob(f"*.{TARGETS}.json")]:
            # What is no metadata lists nothing.
            with contextlib.suppress(errors.AgentinaError):
                document = _parse(TARGETS, _read(path), str(path))
                listed.update(self._target_path(entry) for entry in document.signed.targets.values())
        for path in self._targets.rglob("*"):
            if path.is_file() and path not in listed:
                path.unlink()


def _check_key(root: metadata.Root, role: str, signer: ed25519.Signer) -> None:
    if signer.public_key.keyid not in root.roles[role].keyids:
        raise _not_a_key_of(role, signer)


def _not_a_key_of(role: str, signer: ed25519.Signer) -> errors.AgentinaError:
    return errors.RELEASE_KEY_REFUSED(key=signer.public_key.keyid[:16], problem=f"the root does not list it for {role}")


def _is_signed(role: str, document: Document, root: Document) -> bool:
    result = root.signed.get_verification_result(role, document.signed_bytes, document.signatures)
    return bool(result)


def _missing(role: str, document: Document, previous: metadata.Root | None) -> int:
    """How many signatures a document still needs to come into force."""
    payload, signatures = document.signed_bytes, document.signatures
    owners = [previous] if previous is not None else []
    if role == ROOT:
        owners.append(document.signed)
    missing = 0
    for owner in owners:
        result = owner.get_verification_result(role, payload, signatures)
        missing = max(missing, result.missing)
    return missing


def _parse(role: str, content: bytes, where: str) -> Document:
    try:
        document: Document = metadata.Metadata.from_bytes(content)
    except exceptions.RepositoryError as error:
        raise _untrusted(f"{where} is no TUF metadata") from error
    if not isinstance(document.signed, _CLASSES[role]):
        raise _untrusted(f"{where} is not of the role {role}")
    return document


def _version_of(path: Path) -> int:
    """The version in a timestamp that need not be trusted any more; 0 where there is none."""
    try:
        return int(_parse(TIMESTAMP, _read(path), str(path)).signed.version)
    except errors.AgentinaError:
        return 0


def _read(path: Path) -> bytes:
    try:
        return files.read_bounded(path, limit=_MAX_METADATA)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror or str(error)) from error


def _is_there(path: Path, entry: metadata.TargetFile) -> bool:
    """Whether a target's file has arrived. Its name holds its hash; clients verify that, so the size is enough here."""
    try:
        return path.stat().st_size == entry.length
    except OSError:
        return False


def _copy(source: Path, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        shutil.copyfile(source, temporary)
        temporary.chmod(0o644)
        files.sync_file(temporary)
        temporary.replace(path)
        files.sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise files.from_os_error(error, path) from error


def _ensure(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise files.from_os_error(error, directory) from error


def _whole(moment: datetime) -> datetime:
    """TUF writes whole seconds in UTC."""
    return moment.astimezone(UTC).replace(microsecond=0)


def _show(moment: datetime) -> str:
    return _whole(moment).strftime("%Y-%m-%dT%H:%M:%SZ")


def _untrusted(problem: str) -> errors.AgentinaError:
    return errors.UPDATE_UNTRUSTED(problem=problem)
