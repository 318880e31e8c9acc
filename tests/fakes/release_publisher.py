"""Whoever publishes releases: a repository with real keys, and a host that looks at it over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from agentina.updates import ceremony, channels, ed25519, repository, trust
from tests.fakes import release_builds

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class Publisher:
    """A repository with the keys of all roles: root 2 of 3, targets 1 of 2."""

    def __init__(self, directory: Path, *, place: Path | None = None, online: ed25519.Signer | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.place = repository.Repository(place or directory / "repository")
        self.roots = [ed25519.Signer.generate() for _ in range(3)]
        self.publishers = [ed25519.Signer.generate() for _ in range(2)]
        self.online = online or ed25519.Signer.generate()
        self.begin()
        self.pinned = (self.place.directory / "metadata/1.root.json").read_bytes()
        self.served = directory / "served"
        self.served.symlink_to(self.place.directory)

    def begin(self) -> None:
        wanted = {
            "root": ceremony.Wanted(keys=named(self.roots), threshold=2),
            "targets": ceremony.Wanted(keys=named(self.publishers), threshold=1),
            "online": ceremony.Wanted(keys=named([self.online])),
        }
        self.draft(wanted, self.roots[:2])

    def draft(self, wanted: dict[str, ceremony.Wanted], signers: list[ed25519.Signer]) -> repository.Signed:
        return ceremony.draft(self.place, wanted=wanted, life=365 * DAY, now=NOW, signers=signers)

    def publish(self, version: str, channel: str = "dev", *, content: bytes = b"archive") -> repository.Signed:
        builds = self.directory / f"builds-{len(list(self.directory.iterdir()))}"
        build = release_builds.make(builds, version, content=content)
        signed = self.place.publish(build, channel=channel, signers=self.publishers[:1], now=NOW)
        self.sign_online()
        return signed

    def sign_online(self, now: datetime = NOW) -> bool:
        return self.place.sign_online(self.online, now=now)

    def client(self, url: str, name: str = "client") -> trust.Client:
        (self.directory / name).mkdir(exist_ok=True)
        return trust.Client(directory=self.directory / name, metadata_url=f"{url}/metadata", root=self.pinned)

    def see(self, url: str, channel: str = "dev", name: str = "client") -> list[str]:
        """The versions a host sees, every archive downloaded and verified."""
        downloads = self.directory / "downloads"
        downloads.mkdir(exist_ok=True)
        with self.client(url, name) as client:

            def fetch(target: str) -> bytes:
                found = client.find(target)
                return client.download(found, base_url=f"{url}/targets", directory=downloads).read_bytes()

            document = channels.decode(fetch(channels.path_of(channel)), channel)
            for release in document.releases:
                for path in [*release.archives.values(), *release.sboms.values(), release.notes]:
                    assert fetch(path)
        return [release.version for release in document.releases]


def named(signers: list[ed25519.Signer]) -> list[ceremony.Named]:
    return [(f"key-{number}", signer.public_key) for number, signer in enumerate(signers)]
