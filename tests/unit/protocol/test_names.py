from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.protocol import names


@pytest.mark.parametrize("name", ["default", "coder-2", "a", "x_y", "a" * 24])
def test_good_instances(name: str) -> None:
    assert names.check_instance(name) == name


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "-a", "a-", "a" * 25, "a b", "a\n", ".", "a@b"])
def test_bad_instances(name: str) -> None:
    with pytest.raises(errors.AgentinaError, match="NAME_INVALID"):
        names.check_instance(name)


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "", "b c", "\0"]), max_size=5).map("/".join))
def test_accepted_artifact_names_stay_inside(name: str) -> None:
    try:
        names.check_artifact(name)
    except errors.AgentinaError:
        return
    path = PurePosixPath(name)
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert str(path) == name


@pytest.mark.parametrize("value", ["job_0123456789abcdef.1", "job_zzzzzzzzzzzzzzzz.42"])
def test_task_ids(value: str) -> None:
    assert names.is_task_id(value)


@pytest.mark.parametrize("value", ["job_0123456789abcdef", "job_0123456789abcdef.0", "../job_0123456789abcdef.1", ""])
def test_not_task_ids(value: str) -> None:
    assert not names.is_task_id(value)
