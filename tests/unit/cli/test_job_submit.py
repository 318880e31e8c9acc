from __future__ import annotations

from pathlib import Path

import pytest

from agentina import errors
from agentina.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nmae", "x", "make"], ("--nmae", "--name")),
        (["--tiemout=5m", "--", "make"], ("--tiemout", "--timeout")),
        (["--", ""], ("The command is empty",)),
    ],
)
def test_what_is_no_command_becomes_no_job(
    arguments: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["job", "run", *arguments]) == errors.Exit.USAGE
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert "code: USAGE" in said


def test_empty_key_is_not_taken_for_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("name: once\npayload: {argv: ['true']}\n")
    assert main.run(["job", "submit", str(tmp_path / "job.yaml"), "--idempotency-key", ""]) == errors.Exit.USAGE
    assert "error: --idempotency-key: it is empty." in capsys.readouterr().err
