from __future__ import annotations

import hashlib
import re
import tomllib
import zipfile
from pathlib import Path

import pytest

from releasing import debian, tree, wheels

SOURCE = Path(__file__).parents[3]
LOCKS = SOURCE / "packaging/locks"


def wheel(directory: Path, name: str, **content: str) -> wheels.Wheel:
    path = directory / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in content.items():
            archive.writestr(member.replace("__", "/"), text)
    return wheels.Wheel(path)


@pytest.mark.parametrize(
    ("name", "python", "glibc"),
    [
        ("click-8.5.1-py3-none-any.whl", None, (0, 0)),
        ("pynacl-1.6.2-cp38-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", None, (2, 17)),
        ("cffi-2.1.1-cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", "cp311", (2, 17)),
        ("httptools-0.9-cp313-cp313-manylinux1_x86_64.manylinux_2_28_x86_64.whl", "cp313", (2, 5)),
        ("other-1-cp312-cp312-manylinux_2_34_x86_64.whl", "cp312", (2, 34)),
    ],
)
def test_a_wheels_name_says_where_it_runs(name: str, python: str | None, glibc: tuple[int, int]) -> None:
    found = wheels.Wheel(Path(name))
    assert (found.python, found.glibc) == (python, glibc)


def test_libraries_go_where_their_python_looks(tmp_path: Path) -> None:
    pure = wheel(tmp_path, "pure-1-py3-none-any.whl", pure__a="", **{"pure-1.dist-info/METADATA": "", "pure/a.pyi": ""})
    native = wheel(tmp_path, "fast-1-cp312-cp312-manylinux_2_17_x86_64.whl", fast__a="", **{"fast/a.c": ""})
    tree.unpack([pure, native], tmp_path / "release")
    found = {
        str(path.relative_to(tmp_path / "release")) for path in (tmp_path / "release").rglob("*") if path.is_file()
    }
    assert found == {"lib/pure/a", "lib/pure-1.dist-info/METADATA", "lib-cp312/fast/a"}


def test_a_wheel_that_installs_elsewhere_is_refused(tmp_path: Path) -> None:
    odd = wheel(tmp_path, "odd-1-py3-none-any.whl", **{"odd-1.data/scripts/odd": ""})
    with pytest.raises(ValueError, match="wants to put files elsewhere"):
        tree.unpack([odd], tmp_path / "release")


def _files(tree: Path) -> set[str]:
    """All of a package, but for what Python itself leaves."""
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_a_release_says_what_it_is_and_its_digest_covers_everything(tmp_path: Path) -> None:
    digests = []
    for name, version in (("one", "9.8.7"), ("two", "9.8.7"), ("three", "9.8.8")):
        target = tmp_path / name
        tree.build(target, source=SOURCE, version=version, architecture="amd64", libraries=[])
        assert (target / "version").read_text() == f"{version}\n"
        assert f'__version__ = "{version}"' in (target / "lib/agentina/__init__.py").read_text()
        assert _files(target / "lib/agentina") == _files(SOURCE / "agentina")
        assert not list(target.rglob("__pycache__"))
        digests.append((target / "digest").read_text())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("version", "debian_version"),
    [("1.2.3", "1.2.3"), ("0.1.0.dev0", "0.1.0~dev0"), ("1.0.0rc1", "1.0.0~rc1"), ("1.0.0a2.dev3", "1.0.0~a2~dev3")],
)
def test_versions_in_debians_order(version: str, debian_version: str, tmp_path: Path) -> None:
    job = debian.Job(source=SOURCE, version=version, architecture="amd64", epoch=0, work=tmp_path, output=tmp_path)
    assert job.debian_version == debian_version


def test_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    pairs = (
        ("host.txt", project["dependencies"]),
        ("control-plane.txt", project["optional-dependencies"]["control-plane"]),
    )
    for name, requirements in pairs:
        text = (LOCKS / name).read_text()
        for requirement in requirements:
            wanted = re.match(r"[A-Za-z0-9-]+", requirement)
            assert wanted is not None
            assert f"\n{wanted[0].lower()}==" in text, f"run `make lock`: {requirement} is not in {name}"
        for line in text.splitlines():
            assert line.startswith("#") or re.fullmatch(r"(\S+==\S+|    --hash=sha256:[0-9a-f]{64})( \\)?", line)


def test_a_changed_wheel_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "host.txt"
    lock.write_text(f"a==1 \\\n    --hash=sha256:{hashlib.sha256(b'good').hexdigest()}\n")
    key = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    for python in wheels.PYTHONS:
        directory = tmp_path / "cache" / f"host-{key}" / f"amd64-{python}"
        directory.mkdir(parents=True)
        (directory / "a-1-py3-none-any.whl").write_bytes(b"good")
    assert [found.name for found in wheels.fetch(lock, "amd64", tmp_path / "cache")] == ["a"]
    (directory / "a-1-py3-none-any.whl").write_bytes(b"bad")
    with pytest.raises(SystemExit, match="is not one of the wheels"):
        wheels.fetch(lock, "amd64", tmp_path / "cache")
