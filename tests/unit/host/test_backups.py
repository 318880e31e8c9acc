"""The copy of who a host is: when it is taken, and that no path of the daemon's misleads root."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import msgspec
import pytest

from agentina import errors
from agentina.host.instance import identity
from agentina.host.updating import backups
from agentina.protocol import signing
from agentina.system import files, paths

SEED = base64.b64encode(bytes(range(32))).decode()
WHO = identity.Identity(seed=SEED, agent_id="agent-1", organization="acme")
LICENSE = signing.Signed(key_id="key-1", payload="{}", signature="c2ln")


@pytest.fixture
def instance(tmp_path: Path) -> paths.InstancePaths:
    made = paths.Layout(tmp_path).instance("default")
    made.updates.mkdir(parents=True)
    made.layout.restore_program.parent.mkdir(parents=True)
    made.layout.restore_program.touch()
    identity.save(made, WHO)
    identity.save_license(made, LICENSE)
    return made


def keep(instance: paths.InstancePaths, version: str = "0.5.0") -> bool:
    return backups.keep(instance, version=version, wall_ms=1_800_000_000_000)


def test_copy_has_identity_and_license_and_is_roots_alone(instance: paths.InstancePaths) -> None:
    assert keep(instance)
    copy = backups.read(instance)
    assert copy is not None
    assert copy.files == {"identity": instance.identity.read_bytes(), "license": instance.license.read_bytes()}
    assert (copy.agent_id, copy.version, copy.taken_ms) == ("agent-1", "0.5.0", 1_800_000_000_000)
    assert stat.S_IMODE(instance.identity_copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(instance.identity_copy.parent.stat().st_mode) == 0o700
    assert SEED not in repr(copy)


def test_the_latest_copy_takes_the_place_of_the_one_before(instance: paths.InstancePaths) -> None:
    keep(instance)
    (instance.identity_copy.parent / ".identity.json.0123.tmp").write_bytes(b"what a power cut left")
    identity.save(instance, msgspec.structs.replace(WHO, role="coder"))
    assert keep(instance, "0.6.0")
    copy = backups.read(instance)
    assert copy is not None
    assert (copy.version, identity.understand(copy.files["identity"]).role) == ("0.6.0", "coder")
    assert [path.name for path in instance.identity_copy.parent.iterdir()] == ["identity.json"]


@pytest.mark.parametrize(
    "content",
    [
        None, b"", b"{", b"null", b'{"seed":"AAAA","agent_id":"a"}', b'{"seed":"\xc3\xa4","agent_id":"a"}', b"\xff",
        msgspec.json.encode(msgspec.structs.replace(WHO, agent_id="", pending_token_sha256="0" * 64)),
        msgspec.json.encode(WHO) + b" " * (64 << 10),
    ],
    ids=["missing", "empty", "cut-off", "null", "short-key", "no-base64", "no-text", "under-way", "too-large"],
)  # fmt: skip
def test_what_is_no_whole_identity_replaces_no_copy(instance: paths.InstancePaths, content: bytes | None) -> None:
    keep(instance)
    before = instance.identity_copy.read_bytes()
    instance.identity.unlink()
    if content is not None:
        instance.identity.write_bytes(content)
    assert not keep(instance, "0.6.0")
    assert instance.identity_copy.read_bytes() == before


@pytest.mark.parametrize("trap", ["link", "directory", "fifo", "link-above"])
def test_root_follows_nothing_of_the_daemons(instance: paths.InstancePaths, tmp_path: Path, trap: str) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "identity").write_bytes(msgspec.json.encode(msgspec.structs.replace(WHO, agent_id="another")))
    if trap == "link-above":
        instance.state.rename(tmp_path / "moved")
        instance.state.symlink_to(foreign)
    else:
        instance.identity.unlink()
    if trap == "link":
        instance.identity.symlink_to(foreign / "identity")
    elif trap == "directory":
        instance.identity.mkdir()
    elif trap == "fifo":
        os.mkfifo(instance.identity)
    assert not keep(instance)
    assert backups.read(instance) is None


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_license_that_is_none_is_left_out(instance: paths.InstancePaths, content: bytes | None) -> None:
    instance.license.unlink()
    if content is not None:
        instance.license.write_bytes(content)
    assert keep(instance)
    copy = backups.read(instance)
    assert copy is not None
    assert set(copy.files) == {"identity"}


def test_none_is_taken_where_nothing_would_delete_it(instance: paths.InstancePaths) -> None:
    instance.layout.restore_program.unlink()
    assert not keep(instance)
    assert not instance.identity_copy.exists()
    assert backups.restore(instance, always=False) == []
    with pytest.raises(errors.AgentinaError, match="too old"):
        backups.restore(instance, always=True)


def test_full_disk_is_said_and_keeps_the_copy_before(
    instance: paths.InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(instance)
    before = instance.identity_copy.read_bytes()
    identity.save(instance, msgspec.structs.replace(WHO, role="coder"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_all", full)
    with pytest.raises(errors.AgentinaError) as caught:
        keep(instance, "0.6.0")
    assert caught.value.entry is errors.DISK_FULL, "which the engine takes as inconclusive"
    assert instance.identity_copy.read_bytes() == before


def test_damaged_copy_is_none(instance: paths.InstancePaths) -> None:
    keep(instance)
    instance.identity_copy.write_bytes(b'{"format":1')
    assert backups.read(instance) is None


def test_activation_forgets_who_the_host_was(instance: paths.InstancePaths) -> None:
    keep(instance)
    backups.forget(instance)
    backups.forget(instance)
    assert backups.read(instance) is None


@pytest.mark.parametrize(("code", "said"), [(0, "license identity"), (1, "agentina: there is no copy")])
def test_answer_of_the_base(instance: paths.InstancePaths, code: int, said: str) -> None:
    stream = "1" if code == 0 else "2"
    instance.layout.restore_program.write_text(f"#!/bin/sh\necho '{said}' >&{stream}\nexit {code}\n")
    instance.layout.restore_program.chmod(0o755)
    if code == 0:
        assert backups.restore(instance, always=False) == ["license", "identity"]
        return
    with pytest.raises(errors.AgentinaError) as caught:
        backups.restore(instance, always=True)
    assert caught.value.entry is errors.IDENTITY_NOT_RESTORED
    assert "there is no copy" in caught.value.message
