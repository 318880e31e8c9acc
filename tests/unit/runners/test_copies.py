from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agentina import errors
from agentina.runners import agents, contract, copies, registry

COPY = copies.Copy(runner="codex", version="1.2", program="bin/codex", sha256="ab" * 32)


def put(directory: Path, copy: copies.Copy = COPY, *, text: str = "#!/bin/sh\n") -> Path:
    path = directory / "codex" / copy.version
    (path / "bin").mkdir(parents=True)
    (path / "bin/codex").write_text(text)
    (path / "bin/codex").chmod(0o555)
    (path / copies.DESCRIPTION).write_bytes(msgspec.json.encode(copy))
    (path / copies.DESCRIPTION).chmod(0o444)
    for each in (directory, path.parent, path, path / "bin"):
        each.chmod(0o755)
    return path


def test_what_is_there_is_offered_by_version_and_as_default(tmp_path: Path) -> None:
    put(tmp_path)
    newer = put(tmp_path, msgspec.structs.replace(COPY, version="1.3", sha256="cd" * 32))
    (tmp_path / "codex/default").symlink_to("1.3")
    found = registry.load(tmp_path / "none", tmp_path)
    assert {"codex", "codex@1.2", "codex@1.3"} <= found.keys()
    chosen = {name: found[name].choose() for name in ("codex", "codex@1.2")}
    assert chosen == {
        "codex": contract.Chosen(runner="codex@1.3", version="1.3", program="codex@1.3 sha256:cdcdcdcdcdcd"),
        "codex@1.2": contract.Chosen(runner="codex@1.2", version="1.2", program="codex@1.2 sha256:abababababab"),
    }
    runner = found["codex"]
    assert isinstance(runner, agents.AgentRunner)
    assert runner.program == str(newer / "bin/codex")
    assert registry.programs(found)["codex@1.2"] == "codex@1.2 sha256:abababababab"


def test_what_the_owner_wrote_down_goes_first(tmp_path: Path) -> None:
    put(tmp_path / "copies")
    (tmp_path / "copies/codex/default").symlink_to("1.2")
    program = tmp_path / "own"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "codex.yaml").write_text(f"program: {program}\n")
    found = registry.load(tmp_path, tmp_path / "copies")
    assert registry.programs(found)["codex"].startswith(f"{program} of 20")
    assert registry.programs(found)["codex@1.2"].startswith("codex@1.2 ")
    # A description without a program changes the variables only.
    (tmp_path / "codex.yaml").write_text("environment: {A: b}\n")
    assert registry.programs(registry.load(tmp_path, tmp_path / "copies"))["codex"].startswith("codex@1.2 ")


def test_copy_of_a_runner_that_nobody_described_is_not_offered(tmp_path: Path) -> None:
    path = put(tmp_path)
    path.parent.rename(tmp_path / "ada")
    (tmp_path / "ada/1.2" / copies.DESCRIPTION).unlink()
    (tmp_path / "ada/1.2" / copies.DESCRIPTION).write_bytes(
        msgspec.json.encode(msgspec.structs.replace(COPY, runner="ada"))
    )
    assert not [name for name in registry.load(tmp_path / "none", tmp_path) if name.startswith("ada")]
    described = tmp_path / "described"
    described.mkdir()
    (described / "ada.yaml").write_text("arguments: [run]\n")
    assert "ada@1.2" in registry.load(described, tmp_path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no description": lambda path: (path / copies.DESCRIPTION).unlink(),
    "not readable": lambda path: _write(path / copies.DESCRIPTION, "{"),
    "another version": lambda path: path.rename(path.with_name("1.4")),
    "no program": lambda path: (path / "bin/codex").unlink(),
    "no execution": lambda path: (path / "bin/codex").chmod(0o444),
    "anybody writes the program": lambda path: (path / "bin/codex").chmod(0o757),
    "a group writes the directory": lambda path: path.chmod(0o775),
    "anybody writes above": lambda path: path.parent.chmod(0o777),
    "a link": lambda path: _link(path / "bin/codex"),
    "no version": lambda path: path.rename(path.with_name("a b")),
}


def _write(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/bin/sh")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_copy_is_not_offered(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path)
    DAMAGES[damage](path)
    assert "codex@1.2" not in registry.load(tmp_path / "none", tmp_path)
    assert errors.RUNNER_COPY_DAMAGED.code in {getattr(record, "code", "") for record in caplog.records}


def test_copy_that_has_gone_is_not_chosen(tmp_path: Path) -> None:
    path = put(tmp_path)
    runner = registry.load(tmp_path / "none", tmp_path)["codex@1.2"]
    (path / copies.DESCRIPTION).unlink()
    with pytest.raises(errors.AgentinaError, match="RUNNER_MISSING"):
        runner.choose()
