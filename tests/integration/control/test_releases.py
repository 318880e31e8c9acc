"""The repository beside the control plane: served, renewed, offered."""

from __future__ import annotations

import socket
import time
from datetime import datetime
from pathlib import Path

import pytest

from agentina.control.services import releases
from agentina.updates import keyfiles, repository
from tests.fakes import deadlines, release_publisher
from tests.integration.control import simulated
from tests.integration.control.conftest import ControlPlane


class Bench(release_publisher.Publisher):
    """A publisher that works in the data directory of a control plane, which has the online key."""

    def __init__(self, directory: Path, control: ControlPlane) -> None:
        self.control = control
        data = control.settings.data
        private, _ = keyfiles.create(data, "release-online", None)
        super().__init__(directory, place=data / "releases", online=keyfiles.load(private))

    @property
    def url(self) -> str:
        return f"{self.control.url}/releases"

    def sign_online(self, now: datetime = release_publisher.NOW) -> bool:  # noqa: ARG002 - as in the base
        """It is the control plane that does."""
        return True

    def look(self) -> None:
        """Let the duty do what it would do within a minute."""
        duty = releases.Releases(self.control.plane)
        self.control.run(duty.keep_current)

    def announce(self, version: str, channel: str = "stable") -> None:
        self.publish(version, channel)
        self.look()


@pytest.fixture
def bench(control: ControlPlane, tmp_path: Path) -> Bench:
    return Bench(tmp_path / "publisher", control)


def test_host_updates_from_the_control_plane(bench: Bench) -> None:
    bench.announce("0.4.0")
    assert bench.see(bench.url, "stable") == ["0.4.0"]
    bench.announce("0.5.0")
    assert bench.see(bench.url, "stable") == ["0.5.0", "0.4.0"]


def test_what_was_published_is_announced_without_being_told(bench: Bench) -> None:
    bench.publish("0.4.0", "stable")
    bench.control.clock.boot_offset += 120
    bench.control.plane.duties_bell.set()
    timestamp = bench.place.directory / "metadata/timestamp.json"
    deadline = time.monotonic() + deadlines.HANG
    while not timestamp.exists():
        assert time.monotonic() < deadline
        bench.control.run(bench.control.plane.store.check)
    assert bench.see(bench.url, "stable") == ["0.4.0"]


def test_metadata_is_renewed_before_it_expires(bench: Bench) -> None:
    bench.announce("0.4.0")
    before = bench.place.expiries()
    for _ in range(6):
        bench.control.clock.wall_offset_ms += round(repository.TIMESTAMP_LIFE.total_seconds() * 600)
        bench.look()
        moment = bench.control.clock.wall_ms() / 1000
        ends = bench.place.expiries()
        assert min(ends["timestamp"].timestamp(), ends["snapshot"].timestamp()) > moment
    assert bench.place.expiries()["snapshot"] > before["snapshot"]
    exposed = bench.control.operator.raw("GET", "/metrics").read().decode()
    [line] = [
        line for line in exposed.splitlines() if line.startswith('release_metadata_expiry_timestamp_seconds{role="ti')
    ]
    assert float(line.split()[-1]) == ends["timestamp"].timestamp()


def test_caches_keep_what_never_changes_and_ask_again_for_the_rest(bench: Bench) -> None:
    bench.announce("0.4.0")
    names = [str(path.relative_to(bench.place.directory)) for path in bench.place.directory.rglob("*.json")]
    assert "metadata/timestamp.json" in names
    for name in names:
        reply = bench.control.operator.raw("GET", f"/releases/{name}")
        assert reply.status == 200
        assert reply.read() == (bench.place.directory / name).read_bytes()
        expected = "public, max-age=30" if name.endswith("timestamp.json") else "public, max-age=31536000, immutable"
        assert reply.headers["cache-control"] == expected
    missing = bench.control.operator.raw("GET", "/releases/metadata/2.root.json")
    assert (missing.status, missing.read()[:8]) == (404, b'{"error"')
    assert "cache-control" not in missing.headers


@pytest.mark.parametrize(
    "path",
    [
        "lock", "drafts/2.root.json", "../release-online.key", "metadata/../../release-online.key", "metadata",
        "metadata/", "targets", "metadata/.hidden", "metadata//1.root.json", "metadata/%2e%2e/lock", "targets/releases",
        "metadata/%2e%2e%2f%2e%2e%2frelease-online.key", "metadata/1.root.json%00", "",
    ],
)  # fmt: skip
def test_nothing_else_of_the_data_is_readable(bench: Bench, path: str) -> None:
    bench.announce("0.4.0")
    assert bench.control.operator.raw("GET", f"/releases/{path}").status == 404


def test_repository_is_read_only_and_for_anybody(bench: Bench) -> None:
    bench.announce("0.4.0")
    anybody = simulated.Client(bench.control.url)
    assert anybody.raw("GET", "/releases/metadata/1.root.json").read() == bench.pinned
    head = anybody.raw("HEAD", "/releases/metadata/1.root.json")
    assert (head.status, head.headers["content-length"], head.read()) == (200, str(len(bench.pinned)), b"")
    for method in ("PUT", "POST", "DELETE"):
        answer = anybody.raw(method, "/releases/metadata/1.root.json", b"{}")
        assert (answer.status, answer.read()[:8]) == (405, b'{"error"')


def test_downloads_are_bounded_and_a_stalled_reader_gives_its_place_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "_MOST_DOWNLOADS", 1)
    object.__setattr__(bench.control.settings, "body_seconds", 3.0)
    bench.publish("0.4.0", "stable", content=b"x" * (64 << 20))
    bench.look()
    [archive] = bench.place.directory.rglob("*.tar.gz")
    name = str(archive.relative_to(bench.place.directory))
    host, port = bench.control.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as stalled:
        stalled.sendall(f"GET /releases/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_until(lambda: bench.control.plane.release_downloads == 1)
        refused = bench.control.operator.raw("GET", f"/releases/{name}")
        assert (refused.status, refused.headers["retry-after"], refused.read()[:8]) == (429, "30", b'{"error"')
        assert bench.control.operator.raw("GET", "/releases/metadata/1.root.json").read() == bench.pinned
        wait_until(lambda: bench.control.plane.release_downloads == 0)
    assert bench.control.operator.raw("GET", f"/releases/{name}").read() == archive.read_bytes()


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + deadlines.HANG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the state is another thread's


def test_agents_are_offered_what_their_channel_and_machine_have(bench: Bench) -> None:
    agent = bench.control.agent()
    agent.open(facts={"architecture": "x86_64"}, version="0.4.0")
    assert agent.heartbeat().directives.update_available == ""
    bench.announce("0.4.0")
    assert agent.heartbeat().directives.update_available == ""
    bench.announce("0.6.0", "dev")
    assert agent.heartbeat().directives.update_available == ""
    bench.announce("0.5.0")
    offered = agent.heartbeat().directives
    assert (offered.update_available, offered.update_title) == ("0.5.0", "What is new in 0.5.0")
    agent.open(facts={"architecture": "riscv64"}, version="0.4.0")
    assert agent.heartbeat().directives.update_available == ""
    bench.place.withdraw("0.5.0", channel=None, reason="leaks", signers=bench.publishers[:1], now=release_publisher.NOW)
    bench.look()
    agent.open(facts={"architecture": "x86_64"}, version="0.4.0")
    assert agent.heartbeat().directives.update_available == ""


def test_key_that_the_root_does_not_know_leaves_the_rest_working(bench: Bench) -> None:
    bench.announce("0.4.0")
    (bench.control.settings.data / "release-online.key").unlink()
    (bench.control.settings.data / "release-online.pub").unlink()
    keyfiles.create(bench.control.settings.data, "release-online", None)
    with pytest.raises(Exception, match="RELEASE_KEY_REFUSED"):
        bench.look()
    assert bench.see(bench.url, "stable") == ["0.4.0"]
    assert bench.control.operator.raw("GET", "/readyz").status == 200


def test_without_a_repository_there_is_nothing_to_see(control: ControlPlane) -> None:
    duty = releases.Releases(control.plane)
    control.run(duty.keep_current)
    assert control.operator.raw("GET", "/releases/metadata/1.root.json").status == 404
