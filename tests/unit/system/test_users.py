from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina.system import users

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that everybody may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_nobody_of_that_name() -> None:
    assert users.find("no-such-user-here") is None


def test_without_a_user_nothing_changes() -> None:
    before = os.geteuid(), os.getegid(), os.getgroups()
    with users.acting_as(None):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == before


@needs_root
def test_files_are_the_users_and_root_comes_back(open_path: Path) -> None:
    nobody = users.find("nobody")
    assert nobody is not None
    os.chown(open_path, nobody.pw_uid, nobody.pw_gid)
    before = os.geteuid(), os.getegid(), os.getgroups()
    with users.acting_as(nobody):
        assert os.getgroups() == [nobody.pw_gid]
        (open_path / "file").touch()
    assert ((open_path / "file").stat().st_uid, (open_path / "file").stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


@needs_root
def test_root_comes_back_after_a_failure(open_path: Path) -> None:
    with pytest.raises(FileNotFoundError), users.acting_as(users.find("nobody")):
        (open_path / "none").read_text()
    assert os.geteuid() == 0


@needs_root
def test_a_link_to_what_the_user_may_not_read_leads_nowhere(open_path: Path) -> None:
    secret = open_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    (open_path / "identity").symlink_to(secret)
    with users.acting_as(users.find("nobody")), pytest.raises(PermissionError):
        (open_path / "identity").read_text()
