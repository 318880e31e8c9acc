from __future__ import annotations

from pathlib import Path

import pytest

from agentina import errors
from agentina.control import keys


def test_the_identity_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first, second = keys.load_or_create(tmp_path), keys.load_or_create(tmp_path)
    assert (first.created, second.created) == (True, False)
    assert first.control_plane_id == second.control_plane_id
    assert first.signing_key.public == second.signing_key.public
    assert (tmp_path / "signing-key").stat().st_mode & 0o777 == 0o600
    assert second.signing_key.seed.hex() not in repr(second)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"control_plane_id": "a", "seed": "short"}', b"\xff"])
def test_a_damaged_identity_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "signing-key").write_bytes(content)
    with pytest.raises(errors.AgentinaError, match="signing-key"):
        keys.load_or_create(tmp_path)
    assert (tmp_path / "signing-key").read_bytes() == content
