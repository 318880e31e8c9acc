from __future__ import annotations

from pathlib import Path

import pytest

from agentina.cli import connection, main
from agentina.system import paths
from tests.fakes import scripted_server

WHO = {"operator": "ann", "role": "admin", "control_plane_id": "cp_1", "version": "1"}


def test_certificates_are_found_from_other_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = scripted_server.ScriptedServer(scripted_server.answer(WHO))
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("aop_secret\n")
    try:
        code = main.run(
            ["login", server.url, "--ca-file", "ca.pem", "--token-file", "token", "--root", str(tmp_path / "root")]
        )
    finally:
        server.close()
    assert code == 0
    kept = connection.load_login(paths.Layout(tmp_path / "root"))
    assert kept is not None
    assert (kept.token, kept.ca_file) == ("aop_secret", str(tmp_path / "ca.pem"))
