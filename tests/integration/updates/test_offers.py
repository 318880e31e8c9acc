"""Where a host takes releases from."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentina import errors
from agentina.host.instance import config
from agentina.host.updating import offers
from agentina.system import paths
from tests.fakes import release_publisher

#: Nothing listens there.
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def instance(tmp_path: Path, bench: release_publisher.Publisher) -> paths.InstancePaths:
    made = paths.Layout(tmp_path / "host").instance("default")
    made.layout.release_root.parent.mkdir(parents=True)
    made.layout.release_root.write_bytes(bench.pinned)
    return made


def test_any_web_server_will_do(
    instance: paths.InstancePaths, bench: release_publisher.Publisher, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "architecture", lambda: "amd64")
    bench.publish("0.5.0", "stable", content=b"the archive ")
    config.save(instance, config.HostConfig(control_plane=NOWHERE, release_repository=f"{url}/"))
    with offers.Offers(instance) as offered:
        found = offered.newest("stable")
        assert found is not None
        assert found == offered.find("0.5.0")
        assert (found.version, found.title) == ("0.5.0", "What is new in 0.5.0")
        assert offered.fetch(found).read_bytes().startswith(b"the archive ")


def test_control_planes_is_asked_where_no_other_is_named(
    instance: paths.InstancePaths, bench: release_publisher.Publisher, url: str
) -> None:
    bench.publish("0.5.0", "stable")
    (bench.served / "releases").symlink_to(bench.served)
    config.save(instance, config.HostConfig(control_plane=url))
    with offers.Offers(instance) as offered:
        found = offered.newest("stable")
        assert found is not None
        assert found.version == "0.5.0"


def test_web_server_is_not_trusted(
    instance: paths.InstancePaths, bench: release_publisher.Publisher, url: str, tmp_path: Path
) -> None:
    """Another publisher's repository is refused, and no root of trust is taken from a web server."""
    bench.publish("0.5.0", "stable")
    instance.layout.release_root.write_bytes(release_publisher.Publisher(tmp_path / "another").pinned)
    config.save(instance, config.HostConfig(control_plane=NOWHERE, release_repository=url))
    with offers.Offers(instance) as offered, pytest.raises(errors.AgentinaError) as caught:
        offered.newest("stable")
    assert caught.value.entry is errors.UPDATE_UNTRUSTED
    instance.layout.release_root.unlink()
    config.save(instance, config.HostConfig(control_plane=f"{url}/without", release_repository=url))
    with pytest.raises(errors.AgentinaError) as caught:
        offers.pin_root(instance)
    assert caught.value.entry is errors.ANSWER_UNREADABLE, "asked was what stands in the control plane's place"
    assert not instance.layout.release_root.exists()


@pytest.mark.parametrize(
    "address", ["releases.example.com", "ftp://x", "https://user:secret@x/", "https://x/?y", "file:///x"]
)
def test_what_is_no_address_is_refused(instance: paths.InstancePaths, address: str) -> None:
    config.save(instance, config.HostConfig(control_plane=NOWHERE, release_repository=address))
    with pytest.raises(errors.AgentinaError) as caught:
        config.load(instance)
    assert caught.value.entry is errors.INPUT_INVALID
