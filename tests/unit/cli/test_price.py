from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentina.cli import main
from agentina.gateway import prices


@pytest.fixture
def own(tmp_path: Path) -> Path:
    directory = tmp_path / "etc/agentina"
    directory.mkdir(parents=True)
    path = directory / "gateway.yaml"
    path.write_text('prices: {"gpt-5*": {input: 7, output: 8, note: by contract}, my-model: {input: 1, output: 2}}\n')
    (directory / "default.yaml").write_text(f"control_plane: https://plane.example\ngateway: {path}\n")
    return path


def run(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> tuple[int, str]:
    code = main.run(["--root", str(root), "price", *arguments])
    return code, capsys.readouterr().out


def test_a_price_says_where_it_is_from(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run(capsys, tmp_path, "show", "gpt-5-mini-2025-08-07")
    lines = dict(line.split("  ", 1) for line in shown.splitlines())
    assert code == 0
    assert lines["from"].strip() == str(own), "the owner's pattern goes before the package's row"
    assert lines["note"].strip() == "by contract"
    assert run(capsys, tmp_path, "show", "o3")[1].count("two price lists") == 1


def test_the_list_has_the_owner_s_first(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, shown = run(capsys, tmp_path, "list", "--json")
    document = json.loads(shown)
    assert document["gateway"] == str(own)
    assert [(row["model"], row["from"]) for row in document["prices"][:2]] == [
        ("my-model", str(own)), ("gpt-5*", str(own)),
    ]  # fmt: skip
    assert {row["from"] for row in document["prices"][2:]} == {"package"}
    assert len(document["prices"]) == 2 + len(prices.shipped())
    assert run(capsys, tmp_path, "list")[1].splitlines()[1].split() == ["my-model", "1", "2", str(own), "-"]


def test_a_model_without_a_price_ends_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--root", str(tmp_path), "price", "show", "model-of-tomorrow"]) == 3
    said = capsys.readouterr().err
    assert "no gateway" in said
    assert "gateway.yaml (`providers`, `prices`)" in said


def test_a_file_that_cannot_be_read_is_said(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.write_text("prices: {x: {input: cheap, output: 1}}\n")
    assert main.run(["--root", str(tmp_path), "price", "list"]) != 0
    assert "INPUT_INVALID" in capsys.readouterr().err
