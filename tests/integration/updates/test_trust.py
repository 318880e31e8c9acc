from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest
from securesystemslib import signer
from tuf.api import metadata
from tuf.ngclient._internal import trusted_metadata_set

from agentina import errors
from agentina.updates import ed25519, trust
from tests.fakes import deadlines, release_server

NAME = "releases/0.4.0/agentina-0.4.0-amd64.tar.gz"
CONTENT = b"the archive " * 1000
#: For servers that are slow on purpose; the others get the real bounds, for the machine may be busy.
QUICK = trust.Bounds(metadata_seconds=2, silence_seconds=0.5)
#: Seconds in which these bounds are surely over, on a busy machine too, and the real ones are not.
SURELY = 15


class Bench:
    """A repository with one release, its server, and the directory of a client."""

    def __init__(self, repository: release_server.Repository, url: str, directory: Path) -> None:
        self.repository = repository
        self.url = url
        self.ca_file = ""
        self.bounds = trust.Bounds()
        self.metadata = directory / "metadata"
        self.downloads = directory / "downloads"
        self.metadata.mkdir()
        self.downloads.mkdir()

    def client(self) -> trust.Client:
        return trust.Client(
            directory=self.metadata, metadata_url=f"{self.url}/metadata", root=self.repository.trusted_root,
            bounds=self.bounds, ca_file=self.ca_file,
        )  # fmt: skip

    def refresh(self) -> None:
        with self.client() as client:
            client.refresh()

    def download(self, name: str = NAME) -> bytes:
        with self.client() as client:
            target = client.find(name)
            return client.download(target, base_url=f"{self.url}/targets", directory=self.downloads).read_bytes()

    def refused(self, entry: errors.Entry, act: Callable[[], object]) -> errors.AgentinaError:
        with pytest.raises(errors.AgentinaError) as caught:
            act()
        assert caught.value.entry is entry, caught.value
        return caught.value

    def trusted_version(self, role: str) -> int:
        return int(json.loads((self.metadata / f"{role}.json").read_bytes())["signed"]["version"])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    repository = release_server.Repository(threshold=2)
    repository.add(NAME, CONTENT)
    repository.publish()
    with release_server.Server(repository) as server:
        yield Bench(repository, server.url, tmp_path)


# --- what works --------------------------------------------------------------------------------------------------


def test_release_is_fetched_once_and_verified(bench: Bench) -> None:
    assert bench.download() == CONTENT
    bench.repository.asked.clear()
    assert bench.download() == CONTENT
    assert not [path for path in bench.repository.asked if path.startswith("targets/")]


def test_new_versions_and_rotated_keys_are_followed(bench: Bench) -> None:
    bench.refresh()
    for role in release_server.ROLES:
        bench.repository.rotate(role)
        bench.repository.publish()
        bench.refresh()
    assert bench.trusted_version("root") == 5
    assert bench.download() == CONTENT


def test_files_left_behind_are_only_verified_ones(bench: Bench) -> None:
    bench.download()
    assert sorted(path.name for path in bench.metadata.glob("*.json")) == sorted(
        f"{role}.json" for role in release_server.ROLES
    )
    assert [path.name for path in bench.downloads.iterdir()] == [trust.file_name(NAME)]


# --- targets that are not what was signed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "served",
    [
        pytest.param(b"X" + CONTENT[1:], id="tampered"),
        pytest.param(CONTENT[:-1], id="truncated"),
        pytest.param(CONTENT + b"X", id="oversized"),
        pytest.param(b"", id="empty"),
        pytest.param(release_server.endless, id="endless"),
    ],
)
def test_wrong_target_is_refused_and_leaves_nothing(bench: Bench, served: release_server.Answer) -> None:
    bench.repository.files[bench.repository.target_path(NAME)] = served
    bench.refused(errors.UPDATE_UNTRUSTED, bench.download)
    assert not list(bench.downloads.iterdir())


def test_wrong_length_in_metadata_is_refused(bench: Bench) -> None:
    bench.repository.targets.targets[NAME].length += 1
    bench.repository.publish()
    bench.refused(errors.UPDATE_UNTRUSTED, bench.download)


def test_target_beyond_the_bound_is_not_even_asked_for(bench: Bench) -> None:
    bench.bounds = trust.Bounds(target_bytes=len(CONTENT) - 1)
    bench.refused(errors.UPDATE_UNTRUSTED, bench.download)
    assert not [path for path in bench.repository.asked if path.startswith("targets/")]


def test_damaged_copy_is_fetched_again(bench: Bench) -> None:
    bench.download()
    (bench.downloads / trust.file_name(NAME)).write_bytes(b"half")
    assert bench.download() == CONTENT


def test_bad_copy_does_not_replace_an_earlier_good_one(bench: Bench) -> None:
    bench.download()
    bench.repository.add(NAME, b"new content")
    bench.repository.publish()
    bench.repository.files[bench.repository.target_path(NAME)] = b"bad content"
    bench.refused(errors.UPDATE_UNTRUSTED, bench.download)
    assert (bench.downloads / trust.file_name(NAME)).read_bytes() == CONTENT


def test_unlisted_target_is_unknown(bench: Bench) -> None:
    bench.refused(errors.RELEASE_UNKNOWN, lambda: bench.download("releases/9.9.9/x"))


# --- metadata that is not what was signed, or not by whom ---------------------------------------------------------


def path_of(repository: release_server.Repository, role: str) -> str:
    versions = {"snapshot": repository.snapshot.version, "targets": repository.targets.version}
    return "metadata/timestamp.json" if role == "timestamp" else f"metadata/{versions[role]}.{role}.json"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("signatures", [0, 1], ids=["unsigned", "too few"])
def test_metadata_below_the_threshold_is_refused(bench: Bench, role: str, signatures: int) -> None:
    path = path_of(bench.repository, role)
    document = json.loads(bench.repository.bytes_of(path))
    document["signatures"] = document["signatures"][:signatures]
    changed = json.dumps(document).encode()
    bench.repository.files[path] = changed
    match_hashes(bench.repository, role, changed)
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)
    assert not (bench.metadata / f"{role}.json").exists()


def match_hashes(repository: release_server.Repository, role: str, changed: bytes) -> None:
    """Let the roles above ``role`` vouch for its changed bytes, so that its own signatures alone decide."""
    if role == "targets":
        entry = metadata.MetaFile.from_data(repository.targets.version, changed, ["sha256"])
        repository.snapshot.meta["targets.json"] = entry
        changed = repository.sign("snapshot", repository.snapshot)
        repository.files[path_of(repository, "snapshot")] = changed
    if role in {"targets", "snapshot"}:
        entry = metadata.MetaFile.from_data(repository.snapshot.version, changed, ["sha256"])
        repository.timestamp.snapshot_meta = entry
        repository.files["metadata/timestamp.json"] = repository.sign("timestamp", repository.timestamp)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("harm", ["content", "truncated", "garbage", "deep"])
def test_tampered_metadata_is_refused(bench: Bench, role: str, harm: str) -> None:
    path = path_of(bench.repository, role)
    content = bench.repository.bytes_of(path)
    changed = {
        "content": content.replace(b'"version"', b'"Version"', 1), "truncated": content[:-20], "garbage": b"\0" * 200,
        "deep": b"[" * 15_000,
    }[harm]  # fmt: skip
    bench.repository.files[path] = changed
    match_hashes(bench.repository, role, changed)
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_rotated_out_key_counts_no_more(bench: Bench, role: str) -> None:
    bench.refresh()
    thief = bench.repository.rotate(role)
    bench.repository.signers[role] = thief
    bench.repository.publish()
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


def test_root_must_be_signed_by_the_root_before(bench: Bench) -> None:
    stranger = release_server.Repository(threshold=2)
    stranger.rotate("timestamp")
    bench.repository.files["metadata/2.root.json"] = stranger.files["metadata/2.root.json"]
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


def test_pinned_root_that_is_none_is_refused(bench: Bench) -> None:
    bench.repository.trusted_root = b"{}"
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


def test_same_key_twice_is_one_signature(bench: Bench) -> None:
    one = bench.repository.signers["timestamp"][0]
    data = json.loads(bench.repository.sign("timestamp", bench.repository.timestamp, [one]))
    data["signatures"] *= 2
    bench.repository.files["metadata/timestamp.json"] = json.dumps(data).encode()
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


# --- attacks in time ---------------------------------------------------------------------------------------------


def test_rollback_of_everything_is_refused(bench: Bench) -> None:
    old = bench.repository.files["metadata/timestamp.json"]
    bench.repository.publish()
    bench.refresh()
    bench.repository.files["metadata/timestamp.json"] = old
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)
    assert bench.trusted_version("timestamp") == 3


def test_rollback_of_targets_under_a_new_timestamp_is_refused(bench: Bench) -> None:
    bench.repository.publish()
    bench.refresh()
    bench.repository.targets.version -= 2
    bench.repository.publish()
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


def test_rollback_of_snapshot_under_a_new_timestamp_is_refused(bench: Bench) -> None:
    bench.repository.publish()
    bench.refresh()
    bench.repository.snapshot.version -= 2
    bench.repository.publish()
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused_and_the_old_release_stays(bench: Bench, role: str) -> None:
    bench.download()
    getattr(bench.repository, role).expires = datetime.now(UTC) - timedelta(seconds=1)
    bench.repository.publish()
    bench.refused(errors.UPDATE_EXPIRED, bench.refresh)
    assert (bench.downloads / trust.file_name(NAME)).read_bytes() == CONTENT


def test_expired_root_is_refused(bench: Bench) -> None:
    bench.repository.root.expires = datetime.now(UTC) - timedelta(seconds=1)
    bench.repository.rotate("snapshot")
    bench.repository.publish()
    bench.refused(errors.UPDATE_EXPIRED, bench.refresh)


def test_frozen_timestamp_is_refused_once_it_expires(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.refresh()

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(days=31)

    clock = types.SimpleNamespace(datetime=Later, timezone=timezone)
    monkeypatch.setattr(trusted_metadata_set, "datetime", clock)
    bench.refused(errors.UPDATE_EXPIRED, bench.refresh)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_files_of_different_publications_do_not_mix(bench: Bench, role: str) -> None:
    older = bench.repository.files[path_of(bench.repository, role)]
    bench.repository.publish()
    bench.repository.files[path_of(bench.repository, role)] = older
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


def test_fast_forward_is_undone_by_rotating_the_online_key(bench: Bench) -> None:
    """A thief of the online key can block hosts by a huge version; a new root frees them."""
    honest = bench.repository.timestamp.version
    bench.repository.timestamp.version = 1 << 31
    bench.repository.publish()
    bench.refresh()
    bench.repository.timestamp.version = honest
    bench.repository.publish()
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)
    bench.repository.rotate("timestamp")
    bench.repository.rotate("snapshot")
    bench.repository.publish()
    bench.refresh()
    assert bench.trusted_version("timestamp") == honest + 2


# --- bounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["metadata/timestamp.json", "metadata/2.root.json", "metadata/2.snapshot.json"])
def test_endless_metadata_is_cut_off(bench: Bench, path: str) -> None:
    bench.repository.files[path] = release_server.endless
    bench.refused(errors.UPDATE_UNTRUSTED, bench.refresh)


@pytest.mark.parametrize("answer", [release_server.trickle, release_server.silence], ids=["trickle", "silence"])
def test_slow_server_is_given_up_in_time(bench: Bench, answer: release_server.Answer) -> None:
    bench.repository.files["metadata/timestamp.json"] = answer
    bench.bounds, before = QUICK, time.monotonic()
    bench.refused(errors.UPDATE_UNREACHABLE, bench.refresh)
    assert time.monotonic() - before < SURELY


def test_server_that_drips_its_headers_is_given_up_in_time(bench: Bench) -> None:
    bench.bounds, before = QUICK, time.monotonic()
    with release_server.Dripping() as server:
        bench.url = server.url
        bench.refused(errors.UPDATE_UNREACHABLE, bench.refresh)
    assert time.monotonic() - before < SURELY


@pytest.mark.parametrize("status", [302, 429, 500, 503, 206])
def test_any_other_answer_is_try_later(bench: Bench, status: int) -> None:
    bench.repository.files["metadata/timestamp.json"] = status
    bench.refused(errors.UPDATE_UNREACHABLE, bench.refresh)


def test_server_away_is_try_later_and_its_password_is_not_told(bench: Bench) -> None:
    bench.url = "http://user:hunter2@127.0.0.1:9"
    error = bench.refused(errors.UPDATE_UNREACHABLE, bench.refresh)
    assert "hunter2" not in f"{error!r}{error}"
    assert "127.0.0.1" in error.message


def test_tls_trusts_the_named_ca_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with release_server.Server(bench.repository, tls=context) as server:
        bench.url = server.url
        bench.ca_file = str(certificate)
        assert bench.download() == CONTENT
        bench.repository.files["metadata/timestamp.json"] = release_server.trickle
        bench.bounds, before = QUICK, time.monotonic()
        bench.refused(errors.UPDATE_UNREACHABLE, bench.refresh)
        assert time.monotonic() - before < SURELY
        bench.repository.publish()
        bench.ca_file, bench.bounds = "", trust.Bounds()
        said = bench.refused(errors.UPDATE_UNREACHABLE, bench.refresh)
        assert "certificate" in said.message


def test_name_that_does_not_resolve_is_try_later(bench: Bench) -> None:
    bench.url = "http://nowhere.invalid"
    bench.refused(errors.UPDATE_UNREACHABLE, bench.refresh)


def test_no_room_is_said_before_the_download(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    full: Any = shutil._ntuple_diskusage(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    bench.refused(errors.DISK_FULL, bench.download)
    assert not [path for path in bench.repository.asked if path.startswith("targets/")]


# --- damage on this side -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", release_server.ROLES)
@pytest.mark.parametrize("harm", ["missing", "empty", "garbage"])
def test_damaged_local_metadata_is_fetched_again(bench: Bench, role: str, harm: str) -> None:
    bench.repository.rotate("root")
    bench.repository.publish()
    bench.refresh()
    path = bench.metadata / f"{role}.json"
    path = path.resolve() if role == "root" else path
    path.unlink() if harm == "missing" else path.write_bytes(b"" if harm == "empty" else b"\0" * 50)
    assert bench.download() == CONTENT
    assert bench.trusted_version("root") == 2


@pytest.mark.parametrize(("name", "file"), [("a/b c", "a%2Fb%20c"), ("..", "%2E%2E"), (".", "%2E"), ("a..b", "a..b")])
def test_target_names_become_plain_file_names(name: str, file: str) -> None:
    assert trust.file_name(name) == file


# --- the command -------------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    command = [sys.executable, "-m", "agentina.updates.client", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, timeout=deadlines.HANG).returncode


def test_command_keeps_the_protocol_of_the_conformance_suite(bench: Bench, tmp_path: Path) -> None:
    root, directory, targets = tmp_path / "root.json", tmp_path / "trusted", tmp_path / "targets"
    root.write_bytes(bench.repository.trusted_root)
    where = ("--metadata-dir", directory)
    source = ("--metadata-url", f"{bench.url}/metadata")
    get = ("--target-name", NAME, "--target-base-url", f"{bench.url}/targets", "--target-dir", targets)
    assert run(*where, "init", root) == 0
    assert not bench.repository.asked
    assert run(*where, *source, "refresh") == 0
    assert (directory / "timestamp.json").read_bytes() == bench.repository.files["metadata/timestamp.json"]
    assert run(*where, *source, *get, "download") == 0
    assert run("download", *where, *source, *get) == 0
    assert [path.read_bytes() for path in targets.iterdir()] == [CONTENT]
    assert run(*where, *source, "--target-name", "none", *get[2:], "download") == 1
    bench.repository.files["metadata/timestamp.json"] = b"{}"
    assert run(*where, *source, "refresh") == 1


@pytest.mark.parametrize("arguments", [[], ["refresh"], ["--metadata-dir", "/x", "refresh"], ["frobnicate"]])
def test_wrong_usage_is_exit_code_one(arguments: list[str]) -> None:
    assert run(*arguments) == 1


def test_signature_of_any_shape_is_no_fault() -> None:
    key = ed25519.Signer.generate().public_key
    for text in ("", "zz", "00", "00" * 64, "00" * 65):
        with pytest.raises(Exception, match="not signed by"):
            key.verify_signature(signer.Signature(key.keyid, text), b"data")


def test_signer_does_not_show_its_seed() -> None:
    one = ed25519.Signer.generate()
    assert one.seed.hex() not in repr(one)
    assert repr(one.seed) not in repr(one)
