"""Real releases for updates: copies of this checkout's own with another version, and perhaps a fault."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from agentina.updates import manifests, releases

_MARK: Final = "    mark = instance.state / ('was-here-' + __version__)\n"
_DIES: Final = "    if mark.exists():\n        raise SystemExit(3)\n    mark.touch()\n"
_LOADS: Final = "    settings = config.load(instance)\n"
_DIES_LATER: Final = "        if mark.exists():\n            loop.call_later(0.5, os._exit, 70)\n        mark.touch()\n"
_ENDS: Final = "        await ending.wait()\n"
_WRITES: Final = "            files.write_atomic(self.path, msgspec.json.encode(content), mode=0o644)\n"
_WAITS: Final = "            _wait('{}', self.content, content)\n"
_BREAKS: Final = """
        import sqlite3
        database = sqlite3.connect(instance.outbox / "outbox.db")
        database.execute("ALTER TABLE held RENAME COLUMN record TO content")
        database.execute("ALTER TABLE reports RENAME COLUMN body TO content")
        database.commit()
        os._exit(70)
"""
_USES: Final = "        self._standing.use(settings)\n"
_CANNOT_USE: Final = """
        remote.PATIENCE = 10.0
        if settings.log_level == "debug" or (settings.log_level == "warning" and not self._loops):
            os._exit(70)
        self._heartbeat._version = "longer than it may be" * 20 if settings.log_level == "error" else __version__
"""
_LOSES: Final = "instance.identity.write_bytes(b'{')"
_FORGETS_LATER: Final = _DIES_LATER.replace("            loop", f"            {_LOSES}\n            loop")
#: By fault: file of the release, what is in it, and what takes its place.
FAULTS: Final = {
    "smoke": ("host/follow.py", "import asyncio\n", "import asyncio\nimport a_library_that_is_missing\n"),
    "no-start": ("host/daemon.py", _LOADS, "    raise SystemExit(3)\n"),
    "exit-0": ("host/daemon.py", _LOADS, "    return 0\n"),
    "crash": (
        "host/daemon.py",
        _ENDS,
        "        loop.call_later(1.5, os.kill, os.getpid(), signal.SIGSEGV)\n        await ending.wait()\n",
    ),
    "hang": ("host/daemon.py", _LOADS, "    __import__('time').sleep(9999)\n"),
    "watchdog": (
        "host/watchdog.py",
        "    seconds = notify.watchdog_seconds()\n",
        "    seconds = None\n",
    ),
    "mute": ("host/daemon.py", "link.Link(settings.control_plane,", 'link.Link("https://10.0.2.2:9",'),
    "forgetful": ("host/daemon.py", "        for adoption in found.adoptions:\n", "        for adoption in []:\n"),
    "deaf": (
        "host/daemon.py",
        "        loop.add_signal_handler(number, ending.set)\n",
        "        signal.signal(number, signal.SIG_IGN)\n",
    ),
    "crash-late": (
        "host/daemon.py",
        _ENDS,
        "        loop.call_later(60, os.kill, os.getpid(), signal.SIGSEGV)\n        await ending.wait()\n",
    ),
    "leak": (
        "host/daemon.py",
        _ENDS,
        "        loop.run_in_executor(None, lambda: [bytearray(b'x' * (1 << 20)) for _ in range(1 << 12)])\n" + _ENDS,
    ),
    # Another form of the outbox, which the release before cannot read, and then a crash.
    "breaks-state": (
        "host/daemon.py",
        _ENDS,
        _BREAKS,
    ),
    # Tasks get sixteen times what they may, from the kernel's point of view.
    "generous": (
        "executors/systemd.py",
        "systemd.limits(memory_bytes=memory,",
        "systemd.limits(memory_bytes=memory << 4,",
    ),
    # No fault, but whoever records a state waits, before or after, where it is listed, until it is let go.
    "held": (
        "updates/journal.py",
        _WRITES,
        f"{_WAITS.format('before')}{_WRITES}{_WAITS.format('after')}",
    ),
    # No fault, but it waits until it is let go, before it reads where the control plane is.
    "slow": (
        "host/daemon.py",
        _LOADS,
        f"    while not os.path.exists('/run/agentina-goes'): __import__('time').sleep(0.1)\n{_LOADS}",
    ),
    # No fault but with some settings: it crashes, or no heartbeat is answered, or it does not start with them.
    "touchy": ("host/daemon.py", _USES, _CANNOT_USE + _USES),
    # Good on trial, and as long as it is the first time that it has the daemon's place.
    "second-start": ("host/daemon.py", _LOADS, f"{_MARK}{_DIES}{_LOADS}"),
    # The same, but it says that it is ready before it crashes.
    "later": ("host/daemon.py", _ENDS, f"    {_MARK}{_DIES_LATER}{_ENDS}"),
    # Damages who the host is: at once, or when it has the daemon's place.
    "amnesia": (
        "host/daemon.py",
        _LOADS,
        f"{_LOADS}    {_LOSES}\n    instance.license.unlink()\n    raise SystemExit(3)\n",
    ),
    "amnesia-later": ("host/daemon.py", _ENDS, f"    {_MARK}{_FORGETS_LATER}{_ENDS}"),
}


#: What is added to files.
_ADDED: Final = {
    "held": """

def _wait(when: str, before: Journal, now: Journal) -> None:
    import os, time
    if now.update is None or (before.update is not None and before.update.state is now.update.state):
        return
    point = f"{when} {now.update.state.value}"
    place = "/run/agentina-test"
    try:
        with open("/etc/agentina-test-points") as file:
            if point not in file.read().splitlines():
                return
    except FileNotFoundError:
        return
    os.makedirs(place, exist_ok=True)
    with open(f"{place}/.held", "w") as file:
        file.write(point)
    os.rename(f"{place}/.held", f"{place}/held")
    while os.path.exists(f"{place}/held"):
        time.sleep(0.02)
"""
}


#: By fault that is none of the code's: files that are added to the tree.
_FILES: Final = {
    # Units that no systemd understands.
    "units": {
        f"{place}/{unit}": "[Service]\nType=broken\n[[\n"
        for place, unit in (
            ("lib/systemd/system", "agentina@.service"),
            ("usr/lib/systemd/system", "agentina-trial@.service"),
            ("etc/systemd/system/agentina@default.service.d", "broken.conf"),
        )
    }
}


def build(package: Path, directory: Path, version: str, fault: str = "") -> Path:
    """The build of a release like the one in ``package``, for a repository to publish; its directory."""
    origin = _unpacked(package, directory)
    tree, out = directory / f"tree-{version}", directory / f"build-{version}"
    shutil.copytree(origin, tree, copy_function=os.link)
    own = tree / "lib/agentina"
    was = (tree / "version").read_text().strip()
    first = own / "__init__.py"
    _rewrite(first, _replaced(first.read_text(), f'__version__ = "{was}"', f'__version__ = "{version}"'))
    if fault and fault not in _FILES:
        faulty = own / FAULTS[fault][0]
        _rewrite(faulty, with_fault(faulty.read_text(), fault))
    for path, text in _FILES.get(fault, {}).items():
        (tree / path).parent.mkdir(parents=True)
        (tree / path).write_text(text)
    _describe(tree, version)
    out.mkdir()
    stem = f"agentina-{version}"
    archive, notes = out / f"{stem}-amd64.tar.gz", out / f"{stem}.md"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(tree, arcname=version)
    notes.write_text(f"# {fault or 'good'}\n")
    manifest = manifests.Manifest(
        version=version, title=f"a release that is {fault or 'good'}", built="2026-11-21T12:00:00Z",
        notes=manifests.describe(notes), archives={"amd64": manifests.describe(archive)}, sboms={},
    )  # fmt: skip
    manifests.write(out, manifest)
    shutil.rmtree(tree)
    return out


def _unpacked(package: Path, directory: Path) -> Path:
    origin = directory / "origin"
    if not origin.exists():
        subprocess.run(["dpkg-deb", "-x", package, origin], check=True)
    return origin / "usr/lib/agentina/release"


def _describe(tree: Path, version: str) -> None:
    about = json.loads((tree / "release.json").read_text())
    about |= {"version": version, "digest": releases.digest_of(tree)}
    for name, text in (
        ("release.json", json.dumps(about)), ("version", f"{version}\n"), ("digest", f"{about['digest']}\n"),
    ):  # fmt: skip
        (tree / name).unlink()
        (tree / name).write_text(text)


def with_fault(text: str, fault: str) -> str:
    """The text of a fault's file with the fault built in."""
    _, old, new = FAULTS[fault]
    return _replaced(text, old, new) + _ADDED.get(fault, "")


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"the code is not what it was: {old!r}"
    return text.replace(old, new)


def _rewrite(path: Path, text: str) -> None:
    """Change a file that is a hard link to the original's."""
    path.unlink()
    path.write_text(text)
