"""The hosts themselves: what the other tests take for granted about power, disk, network and clock."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.vm import container, host, images, machine


@pytest.fixture(scope="module")
def there(image: images.Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[machine.Machine]:
    with machine.Machine(image, tmp_path_factory.mktemp("machine"), state=machine.saved(image, "")) as made:
        yield made


@pytest.mark.parametrize("kind", ["vm", "container"])
def test_power_cut_takes_what_was_not_synced(
    kind: str, there: machine.Machine, new_container: Callable[..., container.Container]
) -> None:
    made: host.Host = there if kind == "vm" else new_container(installed=False, forgets=True)
    made.run("echo kept > /root/kept && sync -f /root/kept")
    made.run("echo gone > /root/gone")
    boot = made.get("/proc/sys/kernel/random/boot_id")
    made.power_cut()
    assert made.get("/proc/sys/kernel/random/boot_id") != boot
    assert made.get("/root/kept") == b"kept\n"
    assert made.run("cat /root/gone 2>/dev/null || true") == ""


def test_memory_limit_kills(there: machine.Machine) -> None:
    eat = 'python3 -c "x = bytearray(200 << 20)"'
    done = there.try_run(f"systemd-run --wait -q -p MemoryMax=50M -p MemorySwapMax=0 -p OOMPolicy=kill {eat}")
    assert done.returncode != 0
    there.wait("journalctl -b -q -k --grep oom-kill | grep -q .", "the kernel says so")


@pytest.mark.parametrize("kind", ["vm", "container"])
def test_network_and_disk_go_and_come(
    kind: str, there: machine.Machine, new_container: Callable[..., container.Container]
) -> None:
    made: host.Host = there if kind == "vm" else new_container(installed=False)
    made.set_network(up=False)
    assert made.run("cat /proc/uptime"), "commands go on to work"
    connect = "(timeout 5 bash -c 'exec 3<>/dev/tcp/10.0.2.2/1' 2>&1 || true)"
    assert "refused" not in made.run(connect)
    made.set_network(up=True)
    made.wait(f"{connect} | grep -q refused", "the network is back")
    made.fill_disk()
    # A file of its own: writing over one first gives back the room that it has.
    write = "dd if=/dev/zero of=/root/{name} bs=1M count=4 conv=fsync"
    said = made.try_run(write.format(name="no-room"))
    assert said.returncode != 0
    assert "No space left on device" in said.stderr
    made.free_disk()
    made.run(write.format(name="room"))


def test_reboot_with_a_wrong_clock(there: machine.Machine) -> None:
    there.run("echo kept > /root/written")
    before = int(there.run("date +%s"))
    there.set_clock(-86_400, at_boot=True)
    there.reboot()
    assert there.get("/root/written") == b"kept\n", "an orderly restart loses nothing"
    assert -87_000 < int(there.run("date +%s")) - before < -85_000
    there.set_clock(0)
    assert abs(int(there.run("date +%s")) - before) < 600


def test_a_host_shuts_down_around_commands(new_container: Callable[..., container.Container]) -> None:
    there = new_container("around", installed=False)
    inside = [subprocess.Popen(there.argv("exec sleep 1000"), start_new_session=True) for _ in range(20)]
    there.wait('test "$(pgrep -xc sleep)" = 20', "they run")
    there.shut_down()
    assert all(process.wait(host.PATIENCE) != 0 for process in inside)


def test_hosts_hear_this_machine_while_others_come_and_go(new_container: Callable[..., container.Container]) -> None:
    """A bridge without an address of its own takes the lowest of those on it, for as long as that one is there."""
    new_container("stays", installed=False)
    before = container.bridge_address()
    lowest = "ip link add av-lowest address 00:00:0a:00:02:02 type veth peer name av-end"
    subprocess.run(lowest.split(), check=True)
    try:
        subprocess.run(["ip", "link", "set", "av-lowest", "master", container.BRIDGE], check=True)
        assert container.bridge_address() == before
    finally:
        subprocess.run(["ip", "link", "delete", "av-lowest"], check=True)
    assert container.bridge_address() == before
