from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentina.control import ids
from agentina.protocol import names


@given(st.integers(0, (1 << 48) - 1))
def test_task_ids_made_of_job_ids_have_the_form_hosts_accept(now_ms: int) -> None:
    job = ids.new_job_id(now_ms)
    assert names.is_task_id(f"{job}.1")
    assert ids.split_task_id(f"{job}.999999") == (job, 999_999)


@given(st.integers(0, (1 << 48) - 2))
def test_later_jobs_sort_after_earlier_ones(now_ms: int) -> None:
    assert ids.new_job_id(now_ms) < ids.new_job_id(now_ms + 1)


def test_secrets_are_long_and_different() -> None:
    secrets = {ids.new_secret("act") for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret) == 36 and secret.startswith("act_") for secret in secrets)
