from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.protocol import anomalies, wire
from agentina.protocol.anomalies import State

EVENTS = ("reported", "acknowledge", "answer", "close", "reopen")

words = st.text(st.characters(codec="utf-8"), max_size=60)
sent = st.builds(
    wire.Anomaly,
    id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,20}", fullmatch=True),
    kind=st.sampled_from(sorted(anomalies.KINDS)),
    code=st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True),
    summary=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    evidence=st.dictionaries(words, words, max_size=4),
    count=st.integers(1, 1 << 50),
    first_at_ms=st.integers(0, 1 << 42),
    release=words,
)


@given(sent, st.integers(1, 1 << 50), st.just("") | st.just("job_0123456789abcdef.1"))
def test_a_report_travels_and_comes_back_the_same(found: wire.Anomaly, number: int, task: str) -> None:
    report = wire.Report(number=number, at_ms=1, task_id=task, kind="anomaly", anomaly=found)
    assert msgspec.json.decode(msgspec.json.encode(report), type=wire.Report) == report


@given(
    sent,
    st.text(max_size=40).map(lambda text: text * 20),
    st.dictionaries(st.text(max_size=80), st.text(max_size=40).map(lambda text: text * 60), max_size=18),
)
def test_whatever_is_said_becomes_what_the_control_plane_takes(
    found: wire.Anomaly, summary: str, evidence: dict[str, str]
) -> None:
    said = msgspec.structs.replace(found, summary=summary, evidence=evidence, count=0)
    checked = anomalies.checked(said)
    again = msgspec.json.decode(
        msgspec.json.encode(checked).decode("utf-8", "surrogatepass").encode("utf-8", "replace"), type=wire.Anomaly
    )
    assert again.count == 1
    assert "\n" not in again.summary
    assert sum(len(text) for text in again.evidence.values()) <= wire.MAX_EVIDENCE
    assert anomalies.checked(checked) == checked


def print_of(kind: str, code: str, summary: str, release: str = "") -> str:
    return anomalies.fingerprint(wire.Anomaly(id="a", kind=kind, code=code, summary=summary, release=release))


def test_evidence_is_cut_short_and_says_so() -> None:
    found = wire.Anomaly(
        id="a", kind="host", code="X", summary="full", evidence={"log": "y" * 20_000, "more": "z"}
    )  # fmt: skip
    kept = anomalies.checked(found).evidence
    assert list(kept) == ["log"]
    assert kept["log"].endswith("…")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("job_0123456789abcdef.1 is stuck", "job_fedcba9876543210.3 is stuck"),
        ("No space left: 12 bytes of 4096", "No space left: 9 bytes of 512"),
        ("cannot read /tmp/ag-x81/y", "cannot read /tmp/other/z"),
        ("commit 0123456789abcdef is missing", "commit fedcba98765432100 is missing"),
        ("agent 3c6f4f0e-0000-4000-8000-000000000001 is away", "agent 11111111-2222-4333-8444-555555555555 is away"),
        ("Missing   secret\nTOKEN", "missing secret token"),
    ],
)
def test_what_differs_only_by_time_and_place_is_the_same(one: str, other: str) -> None:
    assert print_of("host", "X", one) == print_of("host", "X", other)


def test_what_differs_in_substance_is_not_the_same() -> None:
    prints = {
        print_of(*what)
        for what in [
            ("egress", "EGRESS_REFUSED", "may not reach example.com:443"),
            ("egress", "EGRESS_REFUSED", "may not reach example.org:443"),
            ("egress", "EGRESS_REFUSED", "may not reach web1a.example.org:443"),
            ("egress", "OTHER", "may not reach example.com:443"),
            ("egress", "EGRESS_REFUSED", "may not reach web1.example.org:443"),
            ("egress", "EGRESS_REFUSED", "may not reach web2.example.org:443"),
            ("complaint", "EGRESS_REFUSED", "may not reach example.com:443"),
            ("release", "UPDATE_ROLLED_BACK", "Release 1.2.3 was rolled back", "1.2.3"),
            ("release", "UPDATE_ROLLED_BACK", "Release 1.2.4 was rolled back", "1.2.4"),
        ]
    }
    assert len(prints) == 9


@given(st.text(max_size=100))
def test_normalising_is_stable(text: str) -> None:
    once = anomalies.normalised(text)
    assert anomalies.normalised(once) == once


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
def test_every_state_can_be_closed_and_what_happens_again_never_stays_closed(state: State, event: str) -> None:
    after = anomalies.after(state, event)
    assert (after is None) == (
        (state, event) in {
            (State.OPEN, "reopen"), (State.ACKNOWLEDGED, "acknowledge"), (State.ANSWERED, "acknowledge"),
            (State.CLOSED, "acknowledge"), (State.CLOSED, "answer"), (State.CLOSED, "close"),
        }
    )  # fmt: skip
    if event == "reported":
        assert after is not State.CLOSED
    if event == "close":
        assert after in {None, State.CLOSED}
