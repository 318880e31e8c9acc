from __future__ import annotations

from pathlib import Path

from agentina.host.instance import fingerprint
from agentina.protocol import wire


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root: Path) -> Path:
    write(
        root / "proc/cpuinfo", "processor : 0\nvendor_id : Maker\nmodel name : Fast 9\ncpu MHz : 800\n\nprocessor : 1\n"
    )
    write(root / "sys/class/dmi/id/product_uuid", "1234-5678\n")
    write(root / "sys/block/sda/device/serial", "DISK1\n")
    write(root / "sys/block/loop0/device/serial", "LOOP\n")
    write(root / "sys/class/net/eth0/address", "aa:bb:cc:dd:ee:ff\n")
    (root / "sys/class/net/eth0/device").mkdir()
    write(root / "sys/class/net/docker0/address", "02:42:00:00:00:01\n")
    return root


def test_parts_are_hashes_and_stay_the_same(tmp_path: Path) -> None:
    root = machine(tmp_path)
    first = fingerprint.read(root=root)
    assert all(len(part) == 32 for part in (first.cpu, first.board, first.disk, first.mac))
    assert "DISK1" not in repr(first)
    write(root / "proc/cpuinfo", "vendor_id : Maker\nmodel name : Fast 9\ncpu MHz : 3000\n")
    write(root / "sys/class/net/docker0/address", "02:42:00:00:00:99\n")
    assert fingerprint.read(root=root) == first


def test_each_part_follows_its_own_hardware(tmp_path: Path) -> None:
    root = machine(tmp_path)
    first = fingerprint.read(root=root)
    write(root / "sys/class/net/eth0/address", "aa:bb:cc:dd:ee:00\n")
    second = fingerprint.read(root=root)
    assert second.mac != first.mac
    assert (second.cpu, second.board, second.disk) == (first.cpu, first.board, first.disk)


def test_machine_that_reveals_nothing_has_empty_parts(tmp_path: Path) -> None:
    found = fingerprint.read(root=tmp_path)
    assert found == wire.Fingerprint(hostname=found.hostname)
