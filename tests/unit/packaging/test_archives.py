from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agentina.updates import manifests
from releasing import archives, wheels

ROOT = Path(__file__).parents[3]
EPOCH = 1_700_000_000
CHANGELOG = """# Changes

## Unreleased

- later

## 0.4.0: Updates that cannot strand a host

### Added

- this

## 0.3.0

- that
"""


def grow(directory: Path, *, backwards: bool = False) -> Path:
    files = {"version": b"0.4.0\n", "lib/a.py": b"a", "lib/b/c.py": b"c", "lib-cp311/x.so": b"\x7fELF"}
    for name in sorted(files, reverse=backwards):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
        path.chmod(0o755 if backwards else 0o600)
        os.utime(path, (0, 0 if backwards else 1_000_000))
    return directory


def test_archive_is_a_function_of_its_content(tmp_path: Path) -> None:
    made = []
    for number, backwards in enumerate([False, True]):
        archive = tmp_path / f"{number}.tar.gz"
        archives.pack(grow(tmp_path / str(number), backwards=backwards), archive, prefix="0.4.0", epoch=EPOCH)
        made.append(archive.read_bytes())
    assert made[0] == made[1]


def test_archive_has_roots_plain_files_below_one_directory(tmp_path: Path) -> None:
    archives.pack(grow(tmp_path / "tree"), tmp_path / "x.tar.gz", prefix="0.4.0", epoch=EPOCH)
    with tarfile.open(tmp_path / "x.tar.gz") as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == [
        "0.4.0", "0.4.0/lib", "0.4.0/lib/a.py", "0.4.0/lib/b", "0.4.0/lib/b/c.py", "0.4.0/lib-cp311",
        "0.4.0/lib-cp311/x.so", "0.4.0/version",
    ]  # fmt: skip
    for entry in entries:
        assert (entry.uid, entry.gid, entry.mtime) == (0, 0, EPOCH)
        assert entry.mode == (0o755 if entry.isdir() else 0o644)
        assert entry.isdir() or entry.isfile()


def test_nothing_but_files_and_directories_is_released(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree")
    (tree / "link").symlink_to("/etc/passwd")
    with pytest.raises(SystemExit, match="neither a file nor a directory"):
        archives.pack(tree, tmp_path / "x.tar.gz", prefix="0.4.0", epoch=EPOCH)


def test_notes_are_the_versions_own_part() -> None:
    title, text = archives.notes(CHANGELOG, "0.4.0")
    assert title == "Updates that cannot strand a host"
    assert text == f"# {title}\n\n### Added\n\n- this\n"
    assert archives.notes(CHANGELOG, "0.3.0") == ("agentina 0.3.0", "# agentina 0.3.0\n\n- that\n")
    assert archives.notes(CHANGELOG, "0.5.0.dev1")[1].endswith("- later\n")
    with pytest.raises(SystemExit):
        archives.notes("# Changes\n", "0.4.0")


def wheel(directory: Path, name: str) -> wheels.Wheel:
    project, version = name.split("-")[:2]
    path = directory / f"{name}.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{project}-{version}.dist-info/METADATA", f"Name: {project}\nLicense-Expression: MIT\n")
    return wheels.Wheel(path)


def test_bill_of_materials_names_every_library_with_the_hashes_of_its_wheels(tmp_path: Path) -> None:
    libraries = [
        wheel(tmp_path, name)
        for name in (
            "click-8.5.1-py3-none-any",
            "Some_Thing-1.0-cp311-cp311-manylinux_2_17_x86_64",
            "Some_Thing-1.0-cp312-cp312-manylinux_2_17_x86_64",
        )
    ]

    def bill() -> dict[str, Any]:
        return archives.bill_of_materials(libraries, version="0.4.0", architecture="amd64", digest="d", epoch=EPOCH)

    made = bill()
    assert made == bill()
    assert (made["bomFormat"], made["specVersion"], made["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", made["serialNumber"])
    by_name = {one["name"]: one for one in made["components"]}
    assert set(by_name) == {"click", "some-thing"}
    hashes = [one["hashes"][0]["content"] for one in by_name["some-thing"]["externalReferences"]]
    assert hashes == [hashlib.sha256(library.path.read_bytes()).hexdigest() for library in libraries[1:]]
    assert by_name["click"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert made["dependencies"][0]["dependsOn"] == sorted(one["bom-ref"] for one in made["components"])


def test_build_is_what_publish_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = [wheel(tmp_path, "click-8.5.1-py3-none-any")]
    monkeypatch.setattr(wheels, "fetch", lambda *_: libraries)
    job = archives.Job(
        source=ROOT, version="0.4.0", architectures=["amd64", "arm64"], lock=tmp_path, cache=tmp_path, epoch=EPOCH,
        output=tmp_path / "dist",
    )  # fmt: skip
    before = os.umask(0o077)
    try:
        first = hashes(archives.build(job))
        os.umask(0o002)
        second = hashes(archives.build(job))
    finally:
        os.umask(before)
    assert first == second
    manifest = manifests.read(tmp_path / "dist/0.4.0")
    assert (manifest.version, manifest.built) == ("0.4.0", "2023-11-14T22:13:20Z")
    assert sorted(manifest.archives) == sorted(manifest.sboms) == ["amd64", "arm64"]
    with tarfile.open(tmp_path / "dist/0.4.0" / manifest.archives["amd64"].name) as tar:
        module = tar.extractfile("0.4.0/lib/agentina/__init__.py")
        assert module is not None
        assert b'__version__ = "0.4.0"' in module.read()
        assert not [one.name for one in tar if one.name.endswith(".pyc")]
        assert stat.S_IMODE(tar.getmember("0.4.0/version").mode) == 0o644


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.mark.parametrize(("lock", "extra"), [("host.txt", None), ("control-plane.txt", "control-plane")])
def test_every_dependency_is_locked(lock: str, extra: str | None) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    text = (ROOT / "packaging/locks" / lock).read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    assert {re.split(r"[><=]", one)[0] for one in wanted} <= locked, "run `make lock`"
