from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from agentina_base import launcher

ORDERED = [
    "1.9",
    "1.9.post1",
    "1.10.dev1",
    "1.10a1",
    "1.10a2",
    "1.10b1",
    "1.10rc1",
    "1.10",
    "1.10.post1",
    "1.10.1",
    "2.0",
]


class Host:
    """A host's files below a directory, and its command run there as its own process."""

    def __init__(self, root: Path) -> None:
        self.base, self.opt = root / "base", root / "opt"
        for directory in (self.base, self.opt / "releases", self.opt / "instances"):
            directory.mkdir(parents=True)

    def release(self, path: Path, *, main: str = "", tag: str = launcher.python_tag()) -> Path:
        cli = path / "lib/agentina/cli"
        cli.mkdir(parents=True)
        (path / "lib/agentina/__init__.py").touch()
        (cli / "__init__.py").touch()
        (cli / "main.py").write_text(main or f"def main():\n    print('ran', {str(path)!r})\n    return 3\n")
        (path / f"lib-{tag}").mkdir()
        return path

    def staged(self, version: str, **how: str) -> Path:
        return self.release(self.opt / "releases" / version, **how)

    def packaged(self, version: str) -> Path:
        path = self.release(self.base / "release")
        (path / "version").write_text(f"{version}\n")
        return path

    def link(self, instance: str, version: str) -> None:
        (self.opt / "instances" / instance).symlink_to(f"../releases/{version}")

    def run(self, *arguments: str, on_trial: bool = False) -> subprocess.CompletedProcess[str]:
        code = (
            f"import sys; sys.path.append({str(Path(launcher.__file__).parents[1])!r})\n"
            "from agentina_base import launcher\n"
            f"sys.exit(launcher.launch(sys.argv[1:], base={str(self.base)!r}, opt={str(self.opt)!r}, "
            f"on_trial={on_trial}))"
        )
        command = [sys.executable, "-ISBc", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_packages_release_runs_unless_an_instance_is_bound_to_another(host: Host) -> None:
    host.packaged("1.0")
    own, newer = host.staged("1.0"), host.staged("2.0")
    host.link("coder-2", "2.0")
    assert host.run("status").stdout == f"ran {own}\n"
    assert host.run("status", "--instance", "coder-2").stdout == f"ran {newer}\n"
    assert host.run("status", "--instance=coder-2").stdout == f"ran {newer}\n"


def test_on_trial_runs_that_release_or_none(host: Host) -> None:
    host.packaged("1.0")
    host.staged("1.0")
    assert host.run("daemon", on_trial=True).returncode == 70, "nothing is on trial"
    (host.opt / "trials").mkdir()
    (host.opt / "trials/default").symlink_to("../releases/2.0")
    assert host.run("daemon", on_trial=True).returncode == 70, "it is gone"
    tried = host.staged("2.0")
    assert host.run("daemon", "--instance", "default", on_trial=True).stdout == f"ran {tried}\n"
    (tried / "lib/agentina/cli/main.py").write_text("raise RuntimeError('broken')\n")
    assert host.run("daemon", on_trial=True).returncode == 70


def test_the_exit_code_is_the_commands_own(host: Host) -> None:
    host.packaged("1.0")
    assert host.run("status").returncode == 3


def test_the_control_plane_goes_with_the_package(host: Host) -> None:
    host.packaged("1.0")
    own = host.staged("1.0")
    host.staged("2.0")
    host.link("default", "2.0")
    assert host.run("control-plane", "serve").stdout == f"ran {own}\n"


def test_the_packages_copy_runs_before_it_is_staged(host: Host) -> None:
    payload = host.packaged("1.0")
    host.staged("0.9")
    done = host.run("status")
    assert done.stdout == f"ran {payload}\n"
    assert "1.0 has nothing for" in done.stderr


@pytest.mark.parametrize(
    "broken",
    ["import nothing_of_that_name", "this is not Python", "raise SystemError('no')", "def other(): pass"],
)
def test_a_broken_release_is_passed_over_and_said_so(host: Host, broken: str) -> None:
    host.packaged("1.0")
    own = host.staged("1.0")
    bad = host.staged("2.0", main=f"import agentina.cli\n{broken}\n")
    host.link("default", "2.0")
    done = host.run("status")
    assert done.stdout == f"ran {own}\n"
    assert str(bad) in done.stderr
    assert str(own) in done.stderr


def test_a_link_to_a_release_that_is_gone_is_passed_over(host: Host) -> None:
    host.packaged("1.0")
    own = host.staged("1.0")
    host.link("default", "2.0")
    assert host.run("status").stdout == f"ran {own}\n"


def test_of_the_others_the_newest_runs(host: Host) -> None:
    host.staged("1.9")
    newest = host.staged("1.10")
    (host.opt / "releases/.new-3.0").mkdir()
    (host.opt / "releases/notes").mkdir()
    assert host.run("status").stdout == f"ran {newest}\n"


def test_a_release_for_other_pythons_only_is_no_use(host: Host) -> None:
    host.staged("1.0", tag="cp399")
    done = host.run("status")
    assert done.returncode == 70
    assert f"has nothing for {launcher.python_tag()}" in done.stderr
    assert "Install the newest agentina package" in done.stderr


def test_with_no_release_at_all_it_says_what_to_do(host: Host) -> None:
    done = host.run("status")
    assert done.returncode == 70
    assert "no release of agentina runs here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "instance"),
    [
        (["status"], "default"),
        (["status", "--instance", "a-1"], "a-1"),
        (["daemon", "--instance=b"], "b"),
        (["job", "run", "--", "tool", "--instance", "c"], "default"),
        (["status", "--instance"], "default"),
        (["status", "--instance", "../../etc"], "default"),
        (["status", "--instance", ""], "default"),
    ],
)
def test_the_instance_is_read_from_the_command_line(arguments: list[str], instance: str) -> None:
    assert launcher.instance_of(arguments) == instance


def test_versions_are_ordered_as_python_orders_them() -> None:
    shuffled = random.Random(1).sample(ORDERED, len(ORDERED))
    assert sorted(shuffled, key=launcher.version_key) == ORDERED
    assert launcher.version_key("1.0") == launcher.version_key("1.0.0")


@pytest.mark.parametrize("name", ["", ".new-1.0", "1.0-beta", "v1", "1..0", "1.0/..", "latest"])
def test_other_names_are_no_versions(name: str) -> None:
    assert not launcher.is_version(name)


def test_the_base_imports_the_standard_library_only() -> None:
    import ast  # noqa: PLC0415

    allowed = set(sys.stdlib_module_names) | {"agentina_base"}
    for path in Path(launcher.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or ""}
            else:
                continue
            # The launcher imports the release it found; nothing else does.
            names -= {"agentina.cli"} if path.name == "launcher.py" else set()
            assert {name.split(".")[0] for name in names} <= allowed, path
