from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.system import clock
from agentina.updates import journal
from agentina.updates.journal import Reason, State, Step, Trial, Verdict

BOOT = "boot-1"
NOW = journal.Now(wall_ms=1_000, boot_id=BOOT)
FORWARD = [
    State.FETCHED, State.VERIFIED, State.STAGED, State.SMOKE_CHECKED, State.ON_TRIAL, State.PROMOTING, State.PROMOTED,
]  # fmt: skip


def wish(version: str = "0.5.0", **changes: object) -> journal.Journal:
    given = {"id": "wish-1", "linked": "0.4.0", "now": NOW, **changes}
    return journal.request(journal.Journal(), version=version, **given)  # type: ignore[arg-type]


def at(state: State, begun: journal.Journal | None = None) -> journal.Journal:
    content = begun or wish()
    for one in FORWARD:
        assert content.update is not None
        if content.update.state is state:
            return content
        content = journal.advance(content, one, NOW)
    return content


def ended(content: journal.Journal, reason: Reason) -> journal.Journal:
    return journal.advance(journal.roll_back(content, reason, NOW), State.ROLLED_BACK, NOW)


def facts(**changes: object) -> journal.Facts:
    return journal.Facts(**{"linked": "0.4.0", "boot_id": BOOT, **changes})  # type: ignore[arg-type]


# --- the table ---------------------------------------------------------------------------------------------------


def test_every_state_has_its_row() -> None:
    assert set(journal.FOLLOWS) == set(State)
    for state in State:
        assert f"{state.value} " in (journal.__doc__ or "")
    assert set(journal.REASONS) == set(Reason)
    assert all(text == text.strip() and text for _, text in journal.REASONS.values())


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (State.REQUESTED, Step.FETCH), (State.FETCHED, Step.VERIFY), (State.VERIFIED, Step.STAGE),
        (State.STAGED, Step.SMOKE_CHECK), (State.SMOKE_CHECKED, Step.BEGIN_TRIAL), (State.PROMOTING, Step.PROMOTE),
    ],
)  # fmt: skip
def test_next_step_of_each_state(state: State, step: Step) -> None:
    assert journal.plan(at(state), facts()).step is step


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"trial": Trial.RUNNING}, (Step.WATCH, None)),
        ({"trial": Trial.RUNNING, "boot_id": "boot-2"}, (Step.UNDO, Reason.INTERRUPTED)),
        ({"trial": Trial.ABSENT}, (Step.UNDO, Reason.INTERRUPTED)),
        ({"trial": Trial.ABSENT, "boot_id": "boot-2"}, (Step.UNDO, Reason.INTERRUPTED)),
        ({"trial": Trial.FAILED, "failure": Reason.WATCHDOG}, (Step.UNDO, Reason.WATCHDOG)),
    ],
)
def test_trial_is_judged_by_what_pid_1_says(seen: dict[str, object], expected: tuple[Step, Reason | None]) -> None:
    decision = journal.plan(at(State.ON_TRIAL), facts(**seen))
    assert (decision.step, decision.reason) == expected


def test_what_is_over_is_left_alone_unless_a_trial_runs_or_the_link_moved() -> None:
    over = ended(at(State.ON_TRIAL), Reason.CRASHED)
    promoted = at(State.PROMOTED)
    assert journal.plan(journal.Journal(), facts()).step is Step.NONE
    assert journal.plan(over, facts()).step is Step.NONE
    assert journal.plan(promoted, facts(linked="0.5.0")).step is Step.NONE
    for content in (journal.Journal(), over):
        assert journal.plan(content, facts(trial=Trial.RUNNING)).step is Step.UNDO
    rescued = journal.plan(promoted, facts(linked="0.4.0"))
    assert (rescued.step, rescued.reason) == (Step.UNDO, Reason.START_FAILURE)


def test_rescue_is_recorded_with_where_it_landed() -> None:
    landed = journal.note_rescue(at(State.PROMOTED), facts(linked=None, detail="start limit hit"), NOW)
    assert landed.update is not None
    assert (landed.update.before, landed.update.reason) == (None, Reason.START_FAILURE)
    over = journal.advance(landed, State.ROLLED_BACK, NOW)
    assert over.skip_of("0.5.0") is not None


@given(st.sampled_from(State), st.sampled_from(State))
def test_only_what_the_table_has_may_follow(present: State, wanted: State) -> None:
    content = at(present)
    if present is State.ROLLING_BACK:
        content = journal.roll_back(at(State.STAGED), Reason.OPERATOR, NOW)
    if present is State.ROLLED_BACK:
        content = ended(at(State.STAGED), Reason.OPERATOR)
    assert content.update is not None
    assert content.update.state is present
    if wanted in journal.FOLLOWS[present] and wanted is not State.ROLLING_BACK:
        moved = journal.advance(content, wanted, NOW).update
        assert moved is not None
        assert moved.state is wanted
    else:
        with pytest.raises(ValueError, match=r"follow|reason"):
            journal.advance(content, wanted, NOW)


# --- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", Reason)
def test_version_is_skipped_exactly_when_it_was_bad(reason: Reason) -> None:
    over = ended(at(State.ON_TRIAL), reason)
    assert over.update is not None
    assert over.update.verdict is journal.REASONS[reason][0]
    if over.update.verdict is Verdict.INCONCLUSIVE:
        assert over.skipped == []
        assert journal.request(over, id="wish-2", version="0.5.0", linked="0.4.0", now=NOW).update is not over.update
        return
    assert over.skip_of("0.5.0") is not None
    with pytest.raises(errors.AgentinaError) as caught:
        journal.request(over, id="wish-2", version="0.5.0", linked="0.4.0", now=NOW)
    assert caught.value.entry is errors.RELEASE_SKIPPED
    assert journal.REASONS[reason][1] in caught.value.message
    forced = journal.request(over, id="wish-2", version="0.5.0", linked="0.4.0", now=NOW, force=True)
    assert forced.skipped == []
    journal.request(over, id="wish-2", version="0.6.0", linked="0.4.0", now=NOW)


def test_network_clock_and_disk_are_never_held_against_a_version() -> None:
    """429, no DNS, a disk that is full: Elastic #15557, Teleport #56512."""
    for reason in (Reason.UNREACHABLE, Reason.UNTRUSTED, Reason.CONTROL_PLANE_AWAY, Reason.DISK_FULL):
        assert journal.REASONS[reason][0] is Verdict.INCONCLUSIVE


def test_release_that_takes_the_host_down_again_and_again_becomes_bad() -> None:
    content = journal.Journal()
    reasons = []
    for number in range(journal.MOST_INTERRUPTED + 1):
        content = journal.request(content, id=f"wish-{number}", version="0.5.0", linked="0.4.0", now=NOW)
        content = ended(at(State.ON_TRIAL, content), Reason.INTERRUPTED)
        assert content.update is not None
        reasons.append(content.update.reason)
    assert reasons == [Reason.INTERRUPTED] * journal.MOST_INTERRUPTED + [Reason.INTERRUPTED_OFTEN]
    assert content.skip_of("0.5.0") is not None
    assert content.interrupted == {}


def test_good_trial_forgets_interruptions() -> None:
    content = ended(at(State.ON_TRIAL), Reason.INTERRUPTED)
    content = journal.request(content, id="wish-2", version="0.5.0", linked="0.4.0", now=NOW)
    assert at(State.PROMOTED, content).interrupted == {}


def test_operator_forgets_a_skip() -> None:
    content = ended(at(State.ON_TRIAL), Reason.CRASHED)
    assert journal.forget_skip(content, "0.5.0").skipped == []


def test_first_reason_of_a_rollback_stays() -> None:
    content = journal.roll_back(at(State.ON_TRIAL), Reason.CRASHED, NOW, detail="signal 11")
    assert journal.roll_back(content, Reason.OPERATOR, NOW) == content


# --- wishes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.REQUESTED, *FORWARD[:-1]])
def test_same_wish_changes_nothing_and_another_is_refused(state: State) -> None:
    content = at(state)
    assert journal.request(content, id="wish-1", version="0.5.0", linked="0.4.0", now=NOW) == content
    assert journal.request(content, id="wish-2", version="0.5.0", linked="0.4.0", now=NOW) == content
    with pytest.raises(errors.AgentinaError) as caught:
        journal.request(content, id="wish-2", version="0.6.0", linked="0.4.0", now=NOW)
    assert caught.value.entry is errors.STATE_CONFLICT
    assert journal.busy(content) == {"0.4.0", "0.5.0"}


def test_wish_for_what_runs_and_a_wish_that_was_fulfilled_change_nothing() -> None:
    assert wish(version="0.4.0") == journal.Journal()
    promoted = at(State.PROMOTED)
    assert journal.request(promoted, id="wish-1", version="0.5.0", linked="0.5.0", now=NOW) == promoted
    assert journal.request(promoted, id="wish-9", version="0.5.0", linked="0.5.0", now=NOW) == promoted
    assert journal.busy(promoted) == set()


def test_history_and_skips_are_bounded() -> None:
    content = journal.Journal()
    for number in range(80):
        content = journal.request(content, id=f"{number}", version=f"0.5.{number}", linked="0.4.0", now=NOW)
        content = journal.advance(
            journal.roll_back(content, Reason.UNSUITABLE, NOW, detail="x" * 9999), State.ROLLED_BACK, NOW
        )
    assert len(content.history) == 20
    assert len(content.skipped) == 50
    assert content.skipped[0].version == "0.5.79"


# --- on disk -----------------------------------------------------------------------------------------------------


def open_file(path: Path) -> journal.File:
    return journal.File(path, clock=clock.SystemClock(), boot_id=BOOT)


def test_journal_comes_back_as_recorded(tmp_path: Path) -> None:
    file = open_file(tmp_path / "default.json")
    assert file.content == journal.Journal()
    content = ended(at(State.ON_TRIAL), Reason.CRASHED)
    file.record(content)
    (tmp_path / ".default.json.0123abcd.tmp").write_text("left by a power cut")
    assert open_file(tmp_path / "default.json").content == content
    assert [path.name for path in tmp_path.iterdir()] == ["default.json"]


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{", b'{"update": {"state": "flying"}}', b"[" * 9999, b"\xff"])
def test_damaged_journal_is_set_aside_and_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "default.json"
    path.write_bytes(content)
    file = open_file(path)
    assert file.content == journal.Journal()
    assert file.damage is not None
    assert file.damage.entry is errors.STATE_CORRUPT
    [aside] = tmp_path.iterdir()
    assert aside.read_bytes() == content


def test_record_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    file = open_file(tmp_path / "none/default.json")
    with pytest.raises(errors.AgentinaError):
        file.record(wish())
    assert file.content == journal.Journal()


# --- orders ------------------------------------------------------------------------------------------------------


def test_wish_that_was_acted_on_is_never_acted_on_again() -> None:
    content = ended(at(State.FETCHED, wish()), Reason.UNREACHABLE)
    assert content.knows("wish-1")
    assert wish_in(content, id="wish-1") == content
    other = ended(at(State.FETCHED, wish_in(content, id="wish-2", version="0.6.0")), Reason.UNREACHABLE)
    assert wish_in(other, id="wish-1") == other, "also when others came in between"
    assert wish_in(other, id="wish-3").update != other.update


def test_refusal_is_known_until_the_next_update() -> None:
    refused = journal.refuse(
        journal.Journal(), id="wish-1", version="0.5.0", error=errors.RELEASE_SKIPPED(version="0.5.0"), now=NOW
    )
    assert refused.knows("wish-1")
    assert refused.refused is not None
    assert refused.refused.code == "RELEASE_SKIPPED"
    assert wish_in(refused, id="wish-2").refused is None


def wish_in(content: journal.Journal, *, id: str, version: str = "0.5.0") -> journal.Journal:  # noqa: A002 - its name
    return journal.request(content, id=id, version=version, linked="0.4.0", now=NOW)


@pytest.mark.parametrize("state", [State.REQUESTED, State.STAGED, State.ON_TRIAL, State.PROMOTING, State.PROMOTED])
def test_operator_leaves_an_update_wherever_it_is(state: State) -> None:
    left = journal.leave(at(state), version=None, reason=Reason.OPERATOR, now=NOW)
    assert left.update is not None
    assert (left.update.state, left.update.verdict) == (State.ROLLING_BACK, Verdict.INCONCLUSIVE)
    assert journal.leave(left, version="0.5.0", reason=Reason.ROLLOUT, now=NOW) == left


@pytest.mark.parametrize("state", [State.REQUESTED, *FORWARD])
def test_rollout_takes_back_what_is_under_way_but_for_a_promotion(state: State) -> None:
    recalled = journal.plan(at(state), facts(recalled="0.5.0", linked="0.5.0", trial=Trial.RUNNING))
    goes_on = journal.plan(at(state), facts(recalled="0.4.9", linked="0.5.0", trial=Trial.RUNNING))
    if state in {State.PROMOTING, State.PROMOTED}:
        assert recalled == goes_on
    else:
        assert recalled == (Step.UNDO, Reason.ROLLOUT, "")
        assert goes_on.step is not Step.UNDO


def test_what_a_trial_could_not_look_at_is_kept() -> None:
    content = journal.advance(at(State.ON_TRIAL), State.PROMOTING, NOW, unproved="memory limits")
    promoted = journal.advance(content, State.PROMOTED, NOW).update
    assert promoted is not None
    assert promoted.unproved == "memory limits"


def test_nothing_to_leave() -> None:
    for content in (journal.Journal(), ended(at(State.FETCHED), Reason.UNREACHABLE)):
        with pytest.raises(errors.AgentinaError) as caught:
            journal.leave(content, version=None, reason=Reason.OPERATOR, now=NOW)
        assert caught.value.entry is errors.STATE_CONFLICT
    with pytest.raises(errors.AgentinaError):
        journal.leave(at(State.PROMOTED), version="0.6.0", reason=Reason.ROLLOUT, now=NOW)


def test_explanation_has_the_particulars_on_one_line() -> None:
    update = journal.roll_back(at(State.ON_TRIAL), Reason.CRASHED, NOW, detail="signal\n11").update
    assert update is not None
    assert journal.explain(update) == "it crashed (signal 11)"


def test_operators_find_every_reason_and_what_to_do() -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/update-hosts.md").read_text()
    for reason, (verdict, words) in journal.REASONS.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{reason.value}` |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:3] == [words, verdict.value]
        assert cells[3]
