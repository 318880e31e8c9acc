"""Release archives: the same tree as in the package, as something to publish, with notes and a bill of materials.

Everything is a function of the sources, the lock file and the date of the last commit, so a build can be repeated and
compared: names in order, one date, owner root, the modes 0644 and 0755, no name and no date in the gzip header.
``manifest.json`` lists the files with their hashes; ``agentina release publish`` reads it
(agentina/updates/manifests.py, which a test compares with what is written here).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import uuid
from pathlib import Path
from typing import Any, Final

from releasing import tree, wheels

_MANIFEST: Final = "manifest.json"
_HEADING: Final = re.compile(r"^## +(.+?)\s*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to build."""

    source: Path
    version: str
    architectures: list[str]
    #: Lock file of the host's libraries, and where wheels are kept.
    lock: Path
    cache: Path
    #: Seconds since 1970 that everything is dated with.
    epoch: int
    #: Directory below which ``<version>/`` is made anew.
    output: Path


def build(job: Job) -> Path:
    """Make the archives, notes, bills of materials and the manifest; returns their directory."""
    target = job.output / job.version
    work = job.output / f".{job.version}.new"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    stem = f"agentina-{job.version}"
    title, text = notes((job.source / "CHANGELOG.md").read_text("utf-8"), job.version)
    notes_file = work / f"{stem}.md"
    notes_file.write_text(text, "utf-8")
    archives, sboms = {}, {}
    for architecture in job.architectures:
        libraries = wheels.fetch(job.lock, architecture, job.cache)
        release = work / "tree"
        tree.build(
            release, source=job.source, version=job.version, architecture=architecture, libraries=libraries
        )  # fmt: skip
        archive = work / f"{stem}-{architecture}.tar.gz"
        pack(release, archive, prefix=job.version, epoch=job.epoch)
        digest = (release / "digest").read_text("ascii").strip()
        shutil.rmtree(release)
        sbom = work / f"{stem}-{architecture}.cdx.json"
        content = bill_of_materials(
            libraries, version=job.version, architecture=architecture, digest=digest, epoch=job.epoch
        )  # fmt: skip
        sbom.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
        archives[architecture], sboms[architecture] = describe(archive), describe(sbom)
    manifest = {
        "version": job.version, "title": title, "built": _moment(job.epoch), "notes": describe(notes_file),
        "archives": archives, "sboms": sboms,
    }  # fmt: skip
    (work / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    return target


def pack(directory: Path, archive: Path, *, prefix: str, epoch: int) -> None:
    """Write the files below ``directory`` into a tar archive, under one directory called ``prefix``."""
    with (
        archive.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=9, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in [directory, *sorted(directory.rglob("*"))]:
            name = prefix if path == directory else f"{prefix}/{path.relative_to(directory).as_posix()}"
            entry = tarfile.TarInfo(name)
            entry.mtime = epoch
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                sys.exit(f"{path} is neither a file nor a directory; a release has nothing else.")
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
                continue
            content = path.read_bytes()
            # What was compiled is loaded, not run: no file of a release needs to be executable.
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))


def notes(changelog: str, version: str) -> tuple[str, str]:
    """Title and text of a release's notes: its part of CHANGELOG.md, or what is under Unreleased.

    A heading is ``## VERSION`` or ``## VERSION: TITLE``.
    """
    headings = list(_HEADING.finditer(changelog))
    for wanted in (version, "Unreleased"):
        for number, heading in enumerate(headings):
            name, _, title = heading[1].partition(":")
            if name.strip() != wanted:
                continue
            end = headings[number + 1].start() if number + 1 < len(headings) else len(changelog)
            body = changelog[heading.end() : end].strip()
            shown = title.strip() or f"agentina {version}"
            return shown, f"# {shown}\n\n{body}\n"
    sys.exit(f"CHANGELOG.md has neither a part for {version} nor one called Unreleased.")


def bill_of_materials(
    libraries: list[wheels.Wheel], *, version: str, architecture: str, digest: str, epoch: int
) -> dict[str, Any]:  # fmt: skip
    """What an archive contains, as CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/)."""
    own = f"pkg:generic/agentina@{version}?arch={architecture}"
    found: dict[str, dict[str, Any]] = {}
    for wheel in libraries:
        name = wheel.name.replace("_", "-").lower()
        reference = f"pkg:pypi/{name}@{wheel.version}"
        component = found.setdefault(
            reference,
            {
                "type": "library", "bom-ref": reference, "name": name, "version": wheel.version, "purl": reference,
                "licenses": [{"license": {"name": wheel.license_name}}], "externalReferences": [],
            },
        )  # fmt: skip
        component["externalReferences"].append(
            {
                "type": "distribution", "url": wheel.path.name, "comment": "the wheel it was taken from",
                "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
            }
        )  # fmt: skip
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{own}#{digest}')}",
        "version": 1,
        "metadata": {
            "timestamp": _moment(epoch),
            "component": {
                "type": "application", "bom-ref": own, "name": "agentina", "version": version, "purl": own,
                "properties": [{"name": "agentina:tree-sha256", "value": digest}],
            },
        },
        "components": list(found.values()),
        "dependencies": [{"ref": own, "dependsOn": sorted(found)}],
    }  # fmt: skip


def describe(path: Path) -> dict[str, Any]:
    """The manifest's entry of a file."""
    content = path.read_bytes()
    return {"name": path.name, "length": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _moment(epoch: int) -> str:
    return dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
