from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.updates import manifests
from tests.fakes import release_builds


def test_build_comes_back_as_described(tmp_path: Path) -> None:
    build = release_builds.make(tmp_path, "0.4.0", architectures=("amd64", "arm64"))
    manifest = manifests.read(build)
    assert manifest.version == "0.4.0"
    assert len(manifest.files) == 5


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_file_that_is_not_what_was_built_is_refused(tmp_path: Path, harm: str) -> None:
    build = release_builds.make(tmp_path, "0.4.0")
    archive = build / "agentina-0.4.0-amd64.tar.gz"
    archive.unlink() if harm == "missing" else archive.write_bytes(b"x" * archive.stat().st_size)
    with pytest.raises(errors.AgentinaError, match=r"agentina-0\.4\.0-amd64"):
        manifests.read(build)


def outside(content: dict[str, Any]) -> None:
    content["notes"]["name"] = "../secret"


def no_version(content: dict[str, Any]) -> None:
    content["version"] = "../1"


def strange_machine(content: dict[str, Any]) -> None:
    content["archives"]["vax"] = content["archives"]["amd64"]


def nothing(content: dict[str, Any]) -> None:
    content["archives"] = {}


@pytest.mark.parametrize("change", [outside, no_version, strange_machine, nothing, dict.clear])
def test_manifest_that_names_what_it_must_not_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    build = release_builds.make(tmp_path, "0.4.0")
    content = json.loads((build / manifests.NAME).read_text())
    change(content)
    (build / manifests.NAME).write_text(json.dumps(content))
    with pytest.raises(errors.AgentinaError):
        manifests.read(build)


def test_directory_without_a_manifest_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        manifests.read(tmp_path)
    assert caught.value.entry is errors.FILE_UNREADABLE
