"""Which machine this is: five parts, hashed, so that a copied state directory is noticed and nothing is revealed."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Final

from agentina.protocol import wire

_SALT: Final = b"agentina:fingerprint:v1\n"
_MAX_READ: Final = 1 << 16


def read(*, root: Path = Path("/")) -> wire.Fingerprint:
    """The fingerprint of this machine; parts it does not reveal to this user are empty."""
    return wire.Fingerprint(
        cpu=_hash(_cpu(root)),
        board=_hash(_text(root / "sys/class/dmi/id/product_uuid") or _text(root / "etc/machine-id")),
        disk=_hash(_disk(root)),
        mac=_hash(_mac(root)),
        hostname=_hash(socket.gethostname()),
    )


def _hash(value: str) -> str:
    return hashlib.sha256(_SALT + value.encode()).hexdigest()[:32] if value else ""


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_READ).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _cpu(root: Path) -> str:
    """Maker, family, model and stepping of the first processor."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "CPU implementer", "CPU part")
    found = {}
    for line in _text(root / "proc/cpuinfo").split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in wanted:
            found[key.strip()] = value.strip()
    return "|".join(found.get(key, "") for key in wanted) if found else ""


def _disk(root: Path) -> str:
    """Serial numbers of the fixed disks."""
    serials = set()
    for device in sorted((root / "sys/block").glob("*")):
        if device.name.startswith(("loop", "ram", "zram", "dm-", "sr")):
            continue
        serial = _text(device / "device/serial") or _text(device / "serial") or _text(device / "device/wwid")
        serials.add(serial)
    return "|".join(sorted(serials - {""}))


def _mac(root: Path) -> str:
    """The lowest permanent address of the physical interfaces."""
    # Bridges, tunnels and container interfaces come and go; only hardware has a device behind it.
    hardware = [path for path in (root / "sys/class/net").glob("*") if (path / "device").exists()]
    addresses = [_text(path / "address") for path in hardware]
    return min((address for address in addresses if address.strip("0:")), default="")
