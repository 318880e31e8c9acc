"""A control plane on this machine, and hosts that become its agents by the packages of this checkout."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import oid

from tests.acceptance import fleet as fleets
from tests.vm import host, images, machine

_SOURCE: Final = Path(__file__).parents[2]
#: Version of a later package of the same sources.
NEXT: Final = "99.0"
#: What packages are dated with: the same sources make the same package, whichever commit has them.
SOURCE_DATE: Final = "1767225600"
#: Options of a control plane that soon gives up hosts which are gone.
IMPATIENT: Final = {"heartbeat_seconds": 1.0, "lease_seconds": 20.0}
#: Where hosts have the control plane's certificate.
CERTIFICATE: Final = "/etc/ssl/certs/agentina-test.pem"


class Lab:
    """A fleet whose hosts reach it at 10.0.2.2, and the packages to install there."""

    def __init__(self, fleet: fleets.Fleet, certificate: Path, package: Path) -> None:
        """``package`` is the agent's .deb."""
        self.fleet = fleet
        self.package = package
        #: The control plane's, also what verifies it.
        self.certificate = certificate

    @property
    def url(self) -> str:
        """The control plane's address for hosts."""
        return f"https://10.0.2.2:{self.fleet.port}"

    def trust(self, there: host.Host) -> None:
        """Put the control plane's certificate on a host."""
        there.put(self.certificate.read_bytes(), CERTIFICATE)

    def activate(self, there: host.Host, instance: str = "default", *options: str, token: str = "") -> dict[str, Any]:
        """``agentina install`` on a host that has the package; returns what it answered."""
        self.trust(there)
        command = f"agentina install --json --instance {instance} --control-plane {self.url} --ca-file {CERTIFICATE}"
        script = " ".join([command, "--token-file - --timeout 500s", *options])
        return dict(json.loads(there.run(script, text=token or self.fleet.new_token())))

    def units(self, there: host.Host) -> dict[str, int]:
        """The main process of each task that runs on a host, by the name of its unit."""
        said = there.run("systemctl show --property=Id,ActiveState,MainPID 'agentina-task@*'")
        shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in said.split("\n\n") if block]
        running = [unit for unit in shown if unit["ActiveState"] == "active" and unit["MainPID"] != "0"]
        return {unit["Id"]: int(unit["MainPID"]) for unit in running}

    def wait_online(self, there: host.Host, instance: str = "default") -> None:
        """Wait until the daemon there has a session."""
        # A command under emulation takes seconds of what the daemon needs to start.
        listens = f"test -S /run/agentina/{instance}/agentina.sock"
        script = f'agentina status --instance {instance} --json | grep -Eq \'"state": *"(online|draining)"\''
        there.wait(f"{listens} && {script}", f"{instance} is online")


def install_package(there: host.Host, package: Path) -> str:
    """``apt-get install`` of a .deb, newer or older; returns what it said. All that ours depends on is in the image."""
    there.put(package.read_bytes(), f"/root/{package.name}")
    command = "DEBIAN_FRONTEND=noninteractive apt-get -y --allow-downgrades install"
    return there.run(f"{command} /root/{package.name} 2>&1")


def with_package(image: images.Image, package: Path) -> Path:
    """A saved machine (:func:`machine.saved`) that has the package."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    return machine.saved(image, f"package {digest}", lambda there: install_package(there, package))


def build_packages(*, version: str = "") -> Path:
    """``make deb``, unless these very sources were built before; returns the agent's package."""
    git = ["git", "-C", str(_SOURCE), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.check_output(
        [*git, "agentina", "packaging", ":!packaging/ansible", "docs", "pyproject.toml", "CHANGELOG.md"]
    ).decode()
    digest = hashlib.sha256(f"{version} {SOURCE_DATE}".encode())
    for name in sorted(set(listed.split("\0"))):
        if (_SOURCE / name).is_file():
            digest.update(f"{name}\0".encode() + hashlib.sha256((_SOURCE / name).read_bytes()).digest())
    final = images.cache() / f"packages-{digest.hexdigest()[:16]}"
    with images.locked(images.cache() / "packages.lock"):
        if not final.exists():
            with images.staged(final) as directory:
                _build(directory, version)
    (package,) = final.glob("agentina_*.deb")
    return package


def _build(directory: Path, version: str) -> None:
    command = [sys.executable, "-B", "-m", "releasing", "deb", "--output", str(directory)]
    command += ["--version", version] if version else []
    environment = {**os.environ, "PYTHONPATH": "packaging", "SOURCE_DATE_EPOCH": SOURCE_DATE}
    done = subprocess.run(command, cwd=_SOURCE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@contextlib.contextmanager
def running(root: Path, package: Path, **options: Any) -> Iterator[Lab]:
    """A lab with a started control plane and no hosts."""
    certificate, key = root / "cert.pem", root / "key.pem"
    _make_certificate(certificate, key)
    with fleets.running(root, certificate=(certificate, key), listen="0.0.0.0", **options) as fleet:
        yield Lab(fleet, certificate, package)


def _make_certificate(certificate: Path, key: Path) -> None:
    """One for a control plane on this machine, which is valid for hosts whose clock is some days off too."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, "agentina test")])
    now = dt.datetime.now(dt.UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "10.0.2.2")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(private.private_bytes(*form))
