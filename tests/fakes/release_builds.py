"""Builds of releases that need no libraries and no time: the real form, made-up content."""

from __future__ import annotations

from pathlib import Path

from agentina.updates import manifests

BUILT = "2026-11-21T12:00:00Z"


def make(
    directory: Path, version: str, *, content: bytes = b"archive", architectures: tuple[str, ...] = ("amd64",)
) -> Path:
    """A build in a new directory below ``directory``."""
    build = directory / version
    build.mkdir(parents=True)
    stem = f"agentina-{version}"
    (build / f"{stem}.md").write_text(f"# What is new in {version}\n\n- this\n")
    for name in architectures:
        (build / f"{stem}-{name}.tar.gz").write_bytes(content + version.encode() + name.encode())
        (build / f"{stem}-{name}.cdx.json").write_text("{}")
    manifest = manifests.Manifest(
        version=version, title=f"What is new in {version}", built=BUILT,
        notes=manifests.describe(build / f"{stem}.md"),
        archives={name: manifests.describe(build / f"{stem}-{name}.tar.gz") for name in architectures},
        sboms={name: manifests.describe(build / f"{stem}-{name}.cdx.json") for name in architectures},
    )  # fmt: skip
    manifests.write(build, manifest)
    return build
