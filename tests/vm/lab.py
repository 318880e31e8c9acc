"""A control plane on this machine, and hosts that become its agents by the packages of this checkout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.acceptance import fleet as fleets
from tests.vm import host, images, machine

_SOURCE: Final = Path(__file__).parents[2]
_CERTIFICATE: Final = "/etc/ssl/certs/agentina-test.pem"


class Lab:
    """A fleet whose hosts reach it at 10.0.2.2, and the packages to install there."""

    def __init__(self, fleet: fleets.Fleet, certificate: Path, package: Path) -> None:
        """``package`` is the agent's .deb."""
        self.fleet = fleet
        self.package = package
        self._certificate = certificate

    @property
    def url(self) -> str:
        """The control plane's address for hosts."""
        return f"https://10.0.2.2:{self.fleet.port}"

    def activate(self, there: host.Host, instance: str = "default", *options: str, token: str = "") -> dict[str, Any]:
        """``agentina install`` on a host that has the package; returns what it answered."""
        there.put(self._certificate.read_bytes(), _CERTIFICATE)
        command = f"agentina install --json --instance {instance} --control-plane {self.url} --ca-file {_CERTIFICATE}"
        script = " ".join([command, "--token-file - --timeout 150s", *options])
        return dict(json.loads(there.run(script, text=token or self.fleet.new_token())))


def install_package(there: host.Host, package: Path) -> str:
    """``apt-get install`` of a .deb; returns what it said. All that ours depends on is in the image."""
    there.put(package.read_bytes(), f"/root/{package.name}")
    return there.run(f"DEBIAN_FRONTEND=noninteractive apt-get -y --no-download install /root/{package.name} 2>&1")


def with_package(image: images.Image, package: Path) -> Path:
    """A saved machine (:func:`machine.saved`) that has the package."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return machine.saved(image, f"package {digest}", lambda there: install_package(there, package))


def build_packages(directory: Path, *, version: str = "") -> Path:
    """``make deb``; returns the agent's package."""
    command = [sys.executable, "-B", "-m", "releasing", "deb", "--output", str(directory)]
    command += ["--version", version] if version else []
    done = subprocess.run(
        command, cwd=_SOURCE, env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "PYTHONPATH": "packaging"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (package,) = directory.glob("agentina_*.deb")
    return package


@contextlib.contextmanager
def running(root: Path, package: Path, **options: Any) -> Iterator[Lab]:
    """A lab with a started control plane and no hosts."""
    certificate, key = root / "cert.pem", root / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9",
         "-subj", "/CN=agentina test", "-addext", "subjectAltName=IP:127.0.0.1,IP:10.0.2.2",
         "-keyout", str(key), "-out", str(certificate)],
        capture_output=True, check=True,
    )  # fmt: skip
    with fleets.running(root, certificate=(certificate, key), listen="0.0.0.0", **options) as fleet:
        yield Lab(fleet, certificate, package)
