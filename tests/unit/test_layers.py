"""Each package imports only the packages listed beside it, and no import cycle exists."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "agentina"
SIDE = {"errors", "protocol", "system"}
MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "protocol": {"errors"},
    "system": {"errors"},
    "client": SIDE,
    "executors": SIDE,
    "gateway": SIDE,
    "inside": {"__init__"},
    "runners": SIDE | {"inside"},
    "updates": SIDE | {"__init__"},
    "host": SIDE | {"client", "executors", "gateway", "inside", "runners", "updates", "__init__"},
    "control": SIDE | {"updates", "__init__"},
    "cli": SIDE | {"client", "gateway", "inside", "updates", "runners", "host", "control", "__init__"},
}
#: Packages below ``host``; what is in none of them (the daemon's loops, install) is above them all.
HOST_MAY_IMPORT = {
    "trees": set(),
    "instance": set(),
    "leaving": set(),
    "work": {"trees", "instance"},
    "updating": {"work", "instance"},
}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import from 'agentina'"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("agentina."))


def package_of(module: str) -> str:
    part = module.split(".")[1]
    known = (ROOT / part).is_dir() or (ROOT / f"{part}.py").is_file()
    return part if known else "__init__"


def sources(package: str) -> list[Path]:
    return [*ROOT.glob(f"{package}.py"), *ROOT.glob(f"{package}/**/*.py")]


def test_every_package_has_a_rule() -> None:
    found = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_down(package: str) -> None:
    for path in sources(package):
        extra = {package_of(name) for name in imported_modules(path)} - MAY_IMPORT[package] - {package}
        assert not extra, f"{path} imports {sorted(extra)}; {package} may import {sorted(MAY_IMPORT[package])}"


def test_every_package_of_the_host_has_a_rule() -> None:
    assert {path.parent.name for path in ROOT.glob("host/*/__init__.py")} == set(HOST_MAY_IMPORT)


@pytest.mark.parametrize("package", HOST_MAY_IMPORT)
def test_imports_of_the_host_point_down(package: str) -> None:
    allowed = HOST_MAY_IMPORT[package] | {package}
    for path in ROOT.glob(f"host/{package}/**/*.py"):
        inside = {name.split(".")[2] for name in imported_modules(path) if name.startswith("agentina.host.")}
        extra = inside - allowed
        assert not extra, f"{path} imports {sorted(extra)} of host; {package} may import {sorted(allowed)}"


def top_level_imports(path: Path) -> set[Path]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agentina"):
            for alias in node.names:
                base = ROOT.parent / (node.module or "").replace(".", "/")
                for candidate in (
                    base / f"{alias.name}.py",
                    base / alias.name / "__init__.py",
                    base.with_suffix(".py"),
                ):
                    if candidate.is_file():
                        found.add(candidate)
                        break
    return found


def test_no_import_cycles() -> None:
    graph = {path: top_level_imports(path) for path in ROOT.rglob("*.py")}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " -> ".join(str(part.relative_to(ROOT)) for part in (*trail, path))
        if path in done:
            return
        for target in sorted(graph.get(path, set())):
            visit(target, (*trail, path))
        done.add(path)

    for path in sorted(graph):
        visit(path, ())
