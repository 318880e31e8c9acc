"""Base images of real hosts: Debian or Ubuntu with systemd, sshd and a kernel, built once and kept outside the tree.

One build serves both backends: ``rootfs/`` is the container's lower layer, ``disk.img`` the virtual machine's disk,
``vmlinuz`` and ``initrd.img`` boot it directly. The cache is ``$AGENTINA_VM_CACHE`` or ``~/.cache/agentina-vm``; an
image's key is a hash of this file and of what was asked for, so that a change here builds anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: What a build machine (Debian or Ubuntu) needs, by the command that shows that it is there.
TOOLS: Final = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "systemd-nspawn": "systemd-container",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "openssl": "openssl",
}
#: What every host has: an ordinary server's packages, so that ours brings in nothing from a network.
PACKAGES: Final = (
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "polkitd",
    "python3",
    "python3-apt",  # what Ansible changes packages with
    "openssh-server",
    "kmod",
    "procps",
    "iproute2",
    "ca-certificates",
    "git",
    "sudo",
    "needrestart",
    "initramfs-tools",
    "busybox-static",
)
#: Suites that can be virtual machines, and their kernels; others are for containers only.
KERNELS: Final = {"bookworm": "linux-image-cloud-amd64", "trixie": "linux-image-cloud-amd64"}
#: Suites of another distribution: the suite that brings the keys of its archive, and what to give to mmdebstrap.
_FOREIGN: Final = {"noble": ("trixie", "usr/share/keyrings/ubuntu-archive-keyring.gpg", "--components=main,universe")}
_KEYS: Final = {"trixie": ("ubuntu-keyring",)}
SUITES: Final = sorted([*KERNELS, *_FOREIGN])
#: What the first stage loads, with what each depends on; newer kernels have some of them built in.
MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net")
#: Units that only cost time on a machine that lives for minutes.
MASKED: Final = (
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
    "systemd-networkd-wait-online.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-timesyncd.service",
    "systemd-random-seed.service",
)
#: Bytes of a virtual disk; sparse.
DISK_BYTES: Final = 4 << 30
# Read at once: a test has none of the person's own settings.
_CACHE: Final = Path(os.environ.get("AGENTINA_VM_CACHE") or "~/.cache/agentina-vm").expanduser()
#: Days after which an image that nobody used is deleted.
_KEPT_DAYS: Final = 14

# The first stage: the distributions' own takes half of a boot under emulation, and looks for disks that are not there.
_INIT: Final = """#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /busybox insmod /$module.ko 2>/dev/null; done
until /busybox mount -t ext4 -o rw,noatime /dev/vda /root; do /busybox usleep 50000; done
/busybox umount /dev
exec /busybox switch_root /root /sbin/init "$@"
"""
_HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"


class ImpossibleError(Exception):
    """No host can be made here; the text says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A built image."""

    #: Debian's or Ubuntu's code name.
    suite: str
    #: Directory that holds everything of it.
    path: Path

    @property
    def rootfs(self) -> Path:
        """The file system as a directory; nobody writes to it."""
        return self.path / "rootfs"

    @property
    def disk(self) -> Path:
        """The file system as a raw ext4 disk; nobody writes to it."""
        return self.path / "disk.img"

    @property
    def ssh_key(self) -> Path:
        """Private key that root of every host accepts."""
        return self.path / "id_ed25519"


def cache() -> Path:
    """Where images are kept."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    return _CACHE


def require() -> None:
    """Install what is missing on this machine.

    Raises:
        ImpossibleError: Not root, another architecture, or no apt.

    """
    if os.geteuid() != 0:
        raise ImpossibleError("hosts are made by root only")
    if platform.machine() != "x86_64":
        raise ImpossibleError(f"images are built for x86_64 only, this is {platform.machine()}")
    missing = sorted({package for command, package in TOOLS.items() if shutil.which(command) is None})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise ImpossibleError(f"not installed, and no apt-get to do it: {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ImpossibleError(f"apt-get {command[0]} failed: {done.stderr.strip()[-500:]}")


def base(suite: str = "bookworm") -> Image:
    """The image of a plain server; built (about a minute) when it is not in the cache.

    Raises:
        ImpossibleError: It cannot be built here.

    """
    require()
    key = hashlib.sha256(Path(__file__).read_bytes() + suite.encode()).hexdigest()[:16]
    image = Image(suite, cache() / f"{suite}-{key}")
    with locked(cache() / f"{suite}.lock"):
        if not image.path.exists():
            _forget_unused()
            with staged(image.path) as directory:
                _build(Image(suite, directory))
    os.utime(image.path)
    return image


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A directory that appears under its name when the block ends well, and is deleted otherwise."""
    directory = Path(tempfile.mkdtemp(prefix=f"{final.name}.", dir=final.parent))
    directory.chmod(0o755)
    try:
        yield directory
        directory.rename(final)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _build(image: Image) -> None:
    log = image.path / "build.log"
    kernel = [KERNELS[image.suite]] if image.suite in KERNELS else []
    packages = ",".join([*PACKAGES, *_KEYS.get(image.suite, ()), *kernel])
    options = []
    if image.suite in _FOREIGN:
        friend, keys, option = _FOREIGN[image.suite]
        options = [f"--keyring={base(friend).rootfs / keys}", option]
    # tmpfs is faster to unpack into, but half of a small machine's memory.
    command = ["mmdebstrap", "--variant=apt", f"--include={packages}", *options, image.suite, str(image.rootfs)]
    with log.open("wb") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        raise ImpossibleError(f"mmdebstrap failed: {log.read_text(errors='replace')[-1500:]}")
    _configure(image)
    if kernel:
        _make_bootable(image)


def _make_bootable(image: Image) -> None:
    _make_initrd(image)
    (kernel,) = (image.rootfs / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, image.path / "vmlinuz")
    with image.disk.open("wb") as disk:
        disk.truncate(DISK_BYTES)
    _run("mkfs.ext4", "-q", "-d", image.rootfs, image.disk)


def _configure(image: Image) -> None:
    root = image.rootfs
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "agentina-vm", "-f", image.ssh_key)
    keys = root / "root/.ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(image.ssh_key.with_suffix(".pub"), keys)
    (root / "etc/hostname").write_text("host\n")
    (root / "etc/hosts").write_text(_HOSTS + "127.0.1.1 host\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 rw,noatime 0 1\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")
    # Each host makes its own at its first boot, like a cloned disk image should.
    (root / "etc/machine-id").write_text("")
    (root / "etc/systemd/network/10-host.network").write_text(network("10.0.2.15"))
    (root / "etc/systemd/network/10-manage.network").write_text(
        "[Match]\nName=eth1\n[Network]\nAddress=10.0.3.15/24\nLinkLocalAddressing=no\n"
    )
    # A name per kind of interface by its driver would differ between the backends.
    (root / "etc/systemd/network/99-default.link").symlink_to("/dev/null")
    (root / "etc/ssh/sshd_config.d/test.conf").write_text("UseDNS no\nUsePAM no\n")
    _run("systemctl", f"--root={root}", "-q", "enable", "systemd-networkd.service", "ssh.service")
    _run("systemctl", f"--root={root}", "-q", "mask", *MASKED)
    _run("chroot", root, "ssh-keygen", "-A")
    for name in ("var/cache/apt/pkgcache.bin", "var/cache/apt/srcpkgcache.bin"):
        (root / name).unlink(missing_ok=True)


def network(address: str) -> str:
    """A networkd file for the one network through which a host reaches the build machine, at 10.0.2.2."""
    return (
        f"[Match]\nName=eth0 host0\n[Network]\nAddress={address}/24\nGateway=10.0.2.2\nDNS=10.0.2.3\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n"
    )


def _make_initrd(image: Image) -> None:
    stage = image.path / "initrd"
    for directory in ("dev", "root", "proc", "sys"):
        (stage / directory).mkdir(parents=True)
    shutil.copy(image.rootfs / "usr/bin/busybox", stage / "busybox")
    (version,) = [path.name for path in (image.rootfs / "usr/lib/modules").iterdir()]
    loaded: list[str] = []
    for wanted in MODULES:
        command = ["chroot", str(image.rootfs), "modprobe", "-S", version, "--show-depends", wanted]
        for line in subprocess.check_output(command, text=True).splitlines():
            word, _, path = line.strip().partition(" ")
            name = Path(path).name.partition(".")[0]
            if word != "insmod" or name in loaded:
                continue
            found = image.rootfs / path.lstrip("/")
            content = subprocess.check_output(["xz", "-dc", found]) if found.suffix == ".xz" else found.read_bytes()
            (stage / f"{name}.ko").write_bytes(content)
            loaded.append(name)
    (stage / "init").write_text(_INIT.format(modules=" ".join(loaded)))
    (stage / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(stage)) for path in sorted(stage.rglob("*")))
    archive = subprocess.check_output([stage / "busybox", "cpio", "-o", "-H", "newc"], input=names.encode(), cwd=stage)
    (image.path / "initrd.img").write_bytes(archive)
    shutil.rmtree(stage)


def _forget_unused() -> None:
    oldest = time.time() - _KEPT_DAYS * 86_400
    for path in cache().iterdir():
        if path.is_dir() and path.stat().st_mtime < oldest:
            shutil.rmtree(path)


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImpossibleError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-1000:]}")
