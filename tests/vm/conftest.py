"""Hosts for the tests of this directory, which are all marked ``vm``: they need root, and minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import conftest as guards
from tests.vm import ahead, coding, container, host, images, lab, machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)


@pytest.fixture(scope="session")
def image() -> images.Image:
    """The base image; the tests are skipped, with the reason, where hosts are impossible."""
    try:
        images.require()
        container.available()
        return images.base()
    except images.ImpossibleError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def package(
    image: images.Image, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The agent's .deb of this checkout; from now on more is made :mod:`ahead <tests.vm.ahead>`."""
    built = lab.build_packages()
    with ahead.making(ahead.wanted_by(request.session.items), tmp_path_factory.mktemp("ahead") / "log"):
        yield built


@pytest.fixture(scope="session")
def next_package(package: Path) -> Path:
    """The same as a later version."""
    return lab.build_packages(version=lab.NEXT)


@pytest.fixture(scope="module")
def run_lab(
    package: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[lab.Lab]:
    """A control plane for the tests of one module; a module's ``LAB`` has the options of its own."""
    options = getattr(request.module, "LAB", {})
    with lab.running(tmp_path_factory.mktemp("control-plane"), package, **options) as running:
        yield running


@pytest.fixture(scope="module")
def new_machine(
    image: images.Image, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., machine.Machine]]:
    """Make a virtual machine, resumed, with the package installed unless told otherwise."""
    made: list[host.Host] = []

    def make(name: str = "host", *, installed: bool = True, **options: Any) -> machine.Machine:
        options["state"] = lab.with_package(image, package) if installed else machine.saved(image, "")
        made.append(there := machine.Machine(image, tmp_path_factory.mktemp(name), name=name, **options))
        there.boot()
        return there

    yield make
    for there in made:
        there.close()


@pytest.fixture(scope="module")
def new_container(
    image: images.Image, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., container.Container]]:
    """Make a container, with the package installed unless told otherwise."""
    made: list[host.Host] = []

    def make(name: str = "host", *, installed: bool = True, **options: Any) -> container.Container:
        made.append(there := container.Container(image, tmp_path_factory.mktemp(name), name=name, **options))
        there.boot()
        if installed:
            lab.install_package(there, package)
        return there

    yield make
    for there in made:
        there.close()


@pytest.fixture(scope="module")
def coding_bench(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> Iterator[coding.Bench]:
    """A host whose agents fix bugs, for the tests of one module."""
    with coding.on(new_container("agents"), run_lab) as made:
        yield made


@pytest.fixture
def bench(coding_bench: coding.Bench) -> coding.Bench:
    """The same, with a model that does as it does at first."""
    coding_bench.begin_anew()
    return coding_bench


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """As everywhere, but a host may outlive the test that started it."""
    before = guards.children()
    yield
    left = {pid: name for pid, name in guards.children().items() if pid not in before and pid not in host.PROCESSES}
    assert not left, f"processes left behind: {left}"
