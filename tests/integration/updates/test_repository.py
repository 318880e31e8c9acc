from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from agentina import errors
from agentina.system import files
from agentina.updates import ceremony, ed25519, repository
from tests.fakes import release_builds, release_publisher

NOW = release_publisher.NOW
DAY = release_publisher.DAY


def refused(entry: errors.Entry, act: Callable[[], object]) -> str:
    with pytest.raises(errors.AgentinaError) as caught:
        act()
    assert caught.value.entry is entry, caught.value
    return caught.value.message


# --- publishing --------------------------------------------------------------------------------------------------


def test_host_sees_what_was_published_promoted_and_withdrawn(bench: release_publisher.Publisher, url: str) -> None:
    bench.publish("0.4.0")
    bench.publish("0.5.0")
    assert bench.see(url) == ["0.5.0", "0.4.0"]
    bench.place.promote("0.4.0", source="dev", target="beta", signers=bench.publishers[1:], now=NOW)
    bench.sign_online()
    assert bench.see(url, "beta") == ["0.4.0"]
    bench.place.withdraw("0.4.0", channel=None, reason="leaks", signers=bench.publishers[:1], now=NOW)
    bench.sign_online()
    assert bench.see(url) == ["0.5.0"]
    assert bench.see(url, "beta") == []
    assert bench.place.channel("beta").withdrawn[0].reason == "leaks"
    with bench.client(url) as client:
        refused(errors.RELEASE_UNKNOWN, lambda: client.find("releases/0.4.0/agentina-0.4.0-amd64.tar.gz"))


def test_promotion_changes_no_byte_of_a_release(bench: release_publisher.Publisher) -> None:
    bench.publish("0.4.0")
    before = set((bench.place.directory / "targets/releases").rglob("*"))
    bench.place.promote("0.4.0", source="dev", target="stable", signers=bench.publishers[:1], now=NOW)
    assert set((bench.place.directory / "targets/releases").rglob("*")) == before
    assert bench.place.channel("stable").releases == bench.place.channel("dev").releases


def test_withdrawn_from_one_channel_stays_in_the_others(bench: release_publisher.Publisher, url: str) -> None:
    bench.publish("0.4.0")
    bench.place.promote("0.4.0", source="dev", target="beta", signers=bench.publishers[:1], now=NOW)
    bench.place.withdraw("0.4.0", channel="beta", reason="too early", signers=bench.publishers[:1], now=NOW)
    bench.sign_online()
    assert bench.see(url) == ["0.4.0"]
    assert bench.see(url, "beta") == []


def test_another_build_of_a_published_version_is_refused(bench: release_publisher.Publisher) -> None:
    bench.publish("0.4.0")
    build = release_builds.make(bench.directory / "other", "0.4.0", content=b"other")
    refused(
        errors.STATE_CONFLICT,
        lambda: bench.place.publish(build, channel="beta", signers=bench.publishers[:1], now=NOW),
    )
    assert bench.place.channel("beta").releases == []


@pytest.mark.parametrize("who", ["online", "root", "stranger"])
def test_only_targets_keys_publish(bench: release_publisher.Publisher, who: str) -> None:
    signer = {"online": bench.online, "root": bench.roots[0], "stranger": ed25519.Signer.generate()}[who]
    build = release_builds.make(bench.directory / "builds", "0.4.0")
    refused(errors.RELEASE_KEY_REFUSED, lambda: bench.place.publish(build, channel="dev", signers=[signer], now=NOW))
    assert not (bench.place.directory / "metadata/1.targets.json").exists()


def test_publication_below_its_threshold_waits_as_a_draft(bench: release_publisher.Publisher, url: str) -> None:
    bench.publish("0.4.0")
    bench.draft({"targets": ceremony.Wanted(threshold=2)}, bench.roots[:2])
    bench.place.renew(signers=bench.publishers, now=NOW, rotated=True)
    bench.sign_online()
    build = release_builds.make(bench.directory / "more", "0.5.0")
    signed = bench.place.publish(build, channel="dev", signers=bench.publishers[:1], now=NOW)
    assert signed.missing == 1
    bench.sign_online()
    assert bench.see(url) == ["0.4.0"]
    # Another publication meanwhile makes the draft outdated; without one the second signature puts it in force.
    assert bench.place.sign_draft(signed.path, bench.publishers[1:]).missing == 0
    assert not signed.path.exists()
    bench.sign_online()
    assert bench.see(url) == ["0.5.0", "0.4.0"]


def test_outdated_draft_is_refused(bench: release_publisher.Publisher) -> None:
    bench.publish("0.4.0")
    document = bench.place.directory / "metadata/1.targets.json"
    draft = bench.place.directory / "drafts/1.targets.json"
    shutil.copy(document, draft)
    refused(errors.STATE_CONFLICT, lambda: bench.place.sign_draft(draft, bench.publishers))


def test_old_files_go_and_listed_ones_stay(bench: release_publisher.Publisher, url: str) -> None:
    for number in range(repository._KEPT + 3):
        bench.publish(f"0.4.{number}")
        bench.place.withdraw(
            f"0.4.{number}", channel=None, reason="old", signers=bench.publishers[:1], now=NOW
        ) if number < 3 else None
    names = {path.name.split(".", 1)[1] for path in (bench.place.directory / "targets/releases").rglob("*.gz")}
    assert "agentina-0.4.0-amd64.tar.gz" not in names
    assert len(list((bench.place.directory / "metadata").glob("*.targets.json"))) <= repository._KEPT
    assert len(bench.see(url)) == repository._KEPT


# --- the online key ----------------------------------------------------------------------------------------------


def test_online_roles_are_renewed_at_half_their_life_and_not_before(bench: release_publisher.Publisher) -> None:
    bench.publish("0.4.0")
    assert not bench.sign_online(NOW)
    assert not bench.sign_online(NOW + repository.TIMESTAMP_LIFE / 2 - timedelta(minutes=1))
    before = bench.place.expiries()
    assert bench.sign_online(NOW + repository.TIMESTAMP_LIFE / 2 + timedelta(minutes=1))
    after = bench.place.expiries()
    assert after["timestamp"] > before["timestamp"]
    assert after["snapshot"] == before["snapshot"]
    assert bench.sign_online(NOW + repository.SNAPSHOT_LIFE)
    assert bench.place.expiries()["snapshot"] > before["snapshot"]


def test_targets_are_not_announced_before_their_files_are_there(bench: release_publisher.Publisher, url: str) -> None:
    """A directory that is being copied to a server piece by piece."""
    bench.publish("0.4.0")
    build = release_builds.make(bench.directory / "more", "0.5.0")
    bench.place.publish(build, channel="dev", signers=bench.publishers[:1], now=NOW)
    [late] = (bench.place.directory / "targets/releases/0.5.0").glob("*.tar.gz")
    content = late.read_bytes()
    for half in (None, content[:5]):
        late.unlink() if half is None else late.write_bytes(half)
        assert not bench.sign_online()
        assert bench.see(url) == ["0.4.0"]
    late.write_bytes(content)
    assert bench.sign_online()
    assert bench.see(url) == ["0.5.0", "0.4.0"]


def test_only_the_online_key_announces(bench: release_publisher.Publisher) -> None:
    bench.publish("0.4.0")
    refused(errors.RELEASE_KEY_REFUSED, lambda: bench.place.sign_online(bench.publishers[0], now=NOW))


def test_targets_nobody_vouches_for_are_never_announced(bench: release_publisher.Publisher, url: str) -> None:
    bench.publish("0.4.0")
    thief = release_publisher.Publisher(bench.directory / "thief")
    thief.publish("6.6.6")
    thief.place.renew(signers=thief.publishers, now=NOW)
    shutil.copytree(thief.place.directory / "targets", bench.place.directory / "targets", dirs_exist_ok=True)
    stolen = thief.place.directory / "metadata/2.targets.json"
    shutil.copy(stolen, bench.place.directory / "metadata/2.targets.json")
    assert not bench.sign_online()
    assert bench.see(url) == ["0.4.0"]


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json"])
@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_online_metadata_is_made_anew(
    bench: release_publisher.Publisher, url: str, name: str, content: bytes
) -> None:
    bench.publish("0.4.0")
    (bench.place.directory / "metadata" / name).write_bytes(content)
    assert bench.sign_online()
    assert bench.see(url) == ["0.4.0"]


def test_two_writers_exclude_each_other(bench: release_publisher.Publisher) -> None:
    with files.exclusive_lock(bench.place.directory / "lock"):
        refused(errors.STATE_CONFLICT, bench.sign_online)
        refused(errors.STATE_CONFLICT, lambda: bench.place.renew(signers=bench.publishers, now=NOW))


# --- the ceremony ------------------------------------------------------------------------------------------------


def test_root_below_its_threshold_waits_for_the_other_custodians(tmp_path: Path) -> None:
    place = repository.Repository(tmp_path)
    custodians = [ed25519.Signer.generate() for _ in range(3)]
    wanted = {
        "root": ceremony.Wanted(keys=release_publisher.named(custodians), threshold=2),
        "targets": ceremony.Wanted(keys=release_publisher.named([ed25519.Signer.generate()])),
        "online": ceremony.Wanted(keys=release_publisher.named([ed25519.Signer.generate()])),
    }
    signed = ceremony.draft(place, wanted=wanted, life=DAY, now=NOW)
    assert signed.missing == 2
    refused(errors.STATE_CONFLICT, place.root)
    assert place.sign_draft(signed.path, custodians[:1]).missing == 1
    assert place.sign_draft(signed.path, custodians[:1]).missing == 1, "the same key twice"
    refused(errors.RELEASE_KEY_REFUSED, lambda: place.sign_draft(signed.path, [ed25519.Signer.generate()]))
    assert place.sign_draft(signed.path, custodians[2:]).missing == 0
    assert [(one.role, one.threshold, len(one.keys)) for one in ceremony.holders(place)] == [
        ("root", 2, 3), ("targets", 1, 1), ("snapshot", 1, 1), ("timestamp", 1, 1),
    ]  # fmt: skip


def test_new_root_needs_the_old_custodians_and_the_new(bench: release_publisher.Publisher) -> None:
    new = [ed25519.Signer.generate() for _ in range(2)]
    signed = bench.draft({"root": ceremony.Wanted(keys=release_publisher.named(new), threshold=2)}, bench.roots[:2])
    assert signed.missing == 2, "the new ones"
    assert bench.place.sign_draft(signed.path, new).missing == 0
    assert bench.place.root().signed.version == 2


@pytest.mark.parametrize("change", ["threshold", "nobody", "online"])
def test_root_that_could_not_work_is_not_even_drafted(bench: release_publisher.Publisher, change: str) -> None:
    wanted = {
        "threshold": {"root": ceremony.Wanted(threshold=4)},
        "nobody": {"targets": ceremony.Wanted(keys=[])},
        "online": {"online": ceremony.Wanted(keys=release_publisher.named(bench.publishers[:1]))},
    }[change]
    refused(errors.INPUT_INVALID, lambda: bench.draft(wanted, bench.roots[:2]))
    assert not list((bench.place.directory / "drafts").glob("*.json"))


@pytest.mark.parametrize("role", ["root", "targets", "online"])
def test_hosts_follow_through_a_rotation(bench: release_publisher.Publisher, url: str, role: str) -> None:
    """Lost or stolen keys: each is replaced by the root's custodians, and hosts need nothing done to them."""
    bench.publish("0.4.0")
    assert bench.see(url) == ["0.4.0"]
    new = [ed25519.Signer.generate() for _ in range(2)]
    before = bench.roots[1:]
    keys = new[:1] if role == "online" else new
    signed = bench.draft({role: ceremony.Wanted(keys=release_publisher.named(keys))}, before)
    if role == "root":
        assert signed.missing
        signed = bench.place.sign_draft(signed.path, new)
        bench.roots = new
    assert not signed.missing
    if role == "targets":
        bench.publishers = new
        refused(errors.UPDATE_UNTRUSTED, lambda: bench.place.renew(signers=new[:1], now=NOW))
        bench.place.renew(signers=new[:1], now=NOW, rotated=True)
    if role == "online":
        refused(errors.RELEASE_KEY_REFUSED, bench.sign_online)
        bench.online = new[0]
    bench.sign_online()
    assert bench.see(url) == ["0.4.0"]
    bench.publish("0.5.0")
    assert bench.see(url) == ["0.5.0", "0.4.0"]
    assert bench.see(url, name="new client") == ["0.5.0", "0.4.0"]


def test_recovery_from_a_stolen_online_key_that_ran_ahead(bench: release_publisher.Publisher, url: str) -> None:
    bench.publish("0.4.0")
    metadata = bench.place.directory / "metadata"
    root = bench.place.root()
    ahead = bench.place._verified("timestamp", root)
    assert ahead is not None
    ahead.signed.version = 1 << 40
    bench.place._write_online("timestamp", ahead, bench.online)
    assert bench.see(url) == ["0.4.0"]
    # The recovery of docs/how-to/publish-releases.md: new online key, online metadata removed, signed anew.
    bench.online = ed25519.Signer.generate()
    bench.draft({"online": ceremony.Wanted(keys=release_publisher.named([bench.online]))}, bench.roots[:2])
    for path in [metadata / "timestamp.json", *metadata.glob("*.snapshot.json")]:
        path.unlink()
    assert bench.sign_online()
    assert bench.see(url) == ["0.4.0"]
    assert bench.place._verified("timestamp", bench.place.root()).signed.version == 1  # type: ignore[union-attr]


def test_chain_of_roots_with_a_hole_or_a_forgery_is_not_built_upon(bench: release_publisher.Publisher) -> None:
    for _ in range(2):
        bench.draft({}, bench.roots[:2])
    metadata = bench.place.directory / "metadata"
    second = (metadata / "2.root.json").read_bytes()
    (metadata / "2.root.json").unlink()
    refused(errors.UPDATE_UNTRUSTED, bench.place.root)
    forged = second.replace(b'"threshold":2', b'"threshold":1').replace(b'"threshold": 2', b'"threshold": 1')
    assert forged != second
    (metadata / "2.root.json").write_bytes(forged)
    refused(errors.UPDATE_UNTRUSTED, bench.place.root)


# --- power cuts --------------------------------------------------------------------------------------------------


class PowerCutError(BaseException):
    """Nothing runs after it."""


def test_power_cut_at_every_write_leaves_a_repository_that_hosts_accept(
    bench: release_publisher.Publisher, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish("0.4.0")
    saved = bench.directory / "saved"
    shutil.copytree(bench.place.directory, saved)
    build = release_builds.make(bench.directory / "builds", "0.5.0")

    def publish() -> None:
        bench.place.publish(build, channel="dev", signers=bench.publishers[:1], now=NOW)
        bench.sign_online()

    replace = Path.replace
    seen, cut = set(), 0
    while True:
        shutil.rmtree(bench.place.directory)
        shutil.copytree(saved, bench.place.directory)
        left = cut

        def falling(self: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise PowerCutError
            left -= 1
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", falling)
            try:
                publish()
                is_whole = True
            except PowerCutError:
                is_whole = False
        versions = bench.see(url, name=f"client-{cut}")
        seen.add(tuple(versions))
        if is_whole:
            assert versions == ["0.5.0", "0.4.0"]
            break
        # What was interrupted is done again, or was done.
        if any(one.version == "0.5.0" for one in bench.place.channel("dev").releases):
            refused(errors.STATE_CONFLICT, publish)
            bench.sign_online()
        else:
            publish()
        assert bench.see(url, name=f"client-{cut}") == ["0.5.0", "0.4.0"]
        cut += 1
    assert cut == 7, "channel document, archive, bill of materials, notes, targets, snapshot, timestamp"
    assert seen == {("0.4.0",), ("0.5.0", "0.4.0")}


def test_disk_full_changes_nothing(
    bench: release_publisher.Publisher, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish("0.4.0")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        refused(errors.DISK_FULL, lambda: bench.publish("0.5.0"))
    assert bench.see(url) == ["0.4.0"]
    bench.publish("0.5.0")
    assert bench.see(url) == ["0.5.0", "0.4.0"]
