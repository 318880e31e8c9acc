from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.host.work import said
from agentina.protocol import redaction, verbs, wire

WORKSPACE = "/t/workspace"


def hear(before: said.Said, request: said.Told) -> said.Step:
    return said.hear(before, request, workspace=WORKSPACE, now_ms=5)


def answer(number: int, report: str, text: str) -> wire.Answer:
    return wire.Answer(number=number, task_id="job_x.1", report=report, anomaly="ano_1", text=text)


def complaint(name: str) -> verbs.Complain:
    return verbs.Complain(id=name, kind="other", text="x")


def test_progress_is_the_last_one() -> None:
    first = hear(said.Said(), verbs.TellProgress(id="a", text="begun", percent=1)).said
    step = hear(first, verbs.TellProgress(id="b", text="done"))
    assert step.is_new
    assert step.said.progress is not None
    assert (step.said.progress.text, step.said.progress.percent, step.said.progress.at_ms) == ("done", None, 5)


def test_complaint_said_again_is_one() -> None:
    step = hear(said.Said(), complaint("a"))
    again = hear(step.said, complaint("a"))
    assert (step.is_new, again.is_new) == (True, False)
    assert again.said == step.said
    assert again.answer == step.answer


def test_question_said_again_keeps_its_number_and_gets_its_answer() -> None:
    step = hear(said.Said(), verbs.Ask(id="a", text="which?"))
    assert (step.answer.question, step.answer.answer) == (1, None)
    after = said.take_answers(step.said, [answer(3, "question:job_x.1:1", "this one")])
    assert after is not None
    again = hear(after, verbs.Ask(id="a", text="which?"))
    assert not again.is_new
    assert (again.answer.question, again.answer.answer) == (1, "this one")
    assert hear(after, verbs.Hear(id="b", question=1)).answer.answer == "this one"


def test_each_answer_is_taken_once_and_in_order() -> None:
    before = hear(said.Said(), verbs.Ask(id="a", text="which?")).said
    given = [answer(2, "question:job_x.1:1", "second"), answer(1, "question:job_x.1:1", "first")]
    after = said.take_answers(before, given)
    assert after is not None
    assert (after.questions[0].answer, after.answered) == ("second", 2)
    assert said.take_answers(after, given) is None
    again = said.take_answers(after, [*given, answer(5, "question:job_x.1:1", "third")])
    assert again is not None
    assert again.questions[0].answer == "third"


@pytest.mark.parametrize(
    "report", ["complaint:job_x.1:a", "question:job_x.1:2", "question:job_x.1:0", "question:", "x"]
)
def test_answer_to_anything_else_is_a_notice(report: str) -> None:
    before = hear(said.Said(), verbs.Ask(id="a", text="which?")).said
    after = said.take_answers(before, [answer(1, report, "so")])
    assert after is not None
    assert after.questions == before.questions
    assert after.notices == ["an operator answers what was reported about this task (ano_1): so"]


@pytest.mark.parametrize("kind", verbs.COMPLAINT_KINDS)
def test_every_kind_of_complaint_has_a_remedy(kind: verbs.ComplaintKind) -> None:
    request = verbs.Complain(id="a", kind=kind, text="it fails", about="X")
    found = said.finding("job_x.1", request, hear(said.Said(), request).said)
    assert (found.summary, found.evidence) == (f"{kind} (X)", {"it says": "it fails"})
    assert errors.CATALOGUE[found.code].remedy
    assert found.name == "complaint:job_x.1:a"


@pytest.mark.parametrize("kind", verbs.COMPLAINT_KINDS)
def test_what_a_complaint_is_about_is_no_credential_on_its_way(kind: verbs.ComplaintKind) -> None:
    request = verbs.Complain(id="a", kind=kind, text="it fails", about="NPM_TOKEN")
    summary = said.finding("job_x.1", request, hear(said.Said(), request).said).summary
    assert redaction.redact(summary) == summary


def test_question_is_named_by_its_number() -> None:
    first = hear(said.Said(), verbs.Ask(id="a", text="which?")).said
    second = verbs.Ask(id="b", text="and?")
    assert said.finding("job_x.1", second, hear(first, second).said).name == "question:job_x.1:2"


def test_answer_to_no_question() -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        hear(said.Said(), verbs.Hear(id="a", question=1))
    assert caught.value.code == "INPUT_INVALID"


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("report", "report"), ("./a//b/", "a/b"), ("a/../b", "b"), (f"{WORKSPACE}/x", "x"), (f"/{WORKSPACE}/x", "x"),
        ("..", None), ("../x", None), ("a/../../x", None), ("/etc/passwd", None), (WORKSPACE, None), (".", None),
        (f"{WORKSPACE}/../home/x", None), ("a\nb", None), ("/t/workspace2/x", None), ("[1]*", "[1]*"),
    ],
)  # fmt: skip
def test_artifacts_are_in_the_workspace(path: str, kept: str | None) -> None:
    request = verbs.DeclareArtifact(id="a", path=path)
    if kept is None:
        with pytest.raises(errors.AgentinaError) as caught:
            hear(said.Said(), request)
        assert caught.value.code == "INPUT_INVALID"
    else:
        assert hear(said.Said(), request).said.artifacts == [kept]


@given(st.text(min_size=1, max_size=60))
def test_no_path_leaves_the_workspace(path: str) -> None:
    try:
        artifacts = hear(said.Said(), verbs.DeclareArtifact(id="a", path=path)).said.artifacts
    except errors.AgentinaError:
        return
    assert not artifacts[0].startswith("/")
    assert ".." not in artifacts[0].split("/")


def test_number_is_bounded() -> None:
    now = said.Said()
    for number in range(said.MAX_COMPLAINTS):
        now = hear(now, complaint(f"c{number}")).said
    with pytest.raises(errors.AgentinaError) as caught:
        hear(now, complaint("more"))
    assert caught.value.code == "TASK_SAYS_TOO_MUCH"
    # What was taken is still acknowledged when it is said again.
    assert not hear(now, complaint("c0")).is_new


def test_newest_notices_are_kept() -> None:
    now = said.Said()
    for number in range(said.MAX_NOTICES + 3):
        now = said.noticed(now, str(number))
    assert now.notices[0] == "3"
    assert len(now.notices) == said.MAX_NOTICES


def test_pace_is_held() -> None:
    pace = said.bucket(0.0)
    for _ in range(said.BURST):
        said.check_pace(pace, 0.0)
    with pytest.raises(errors.AgentinaError, match="TASK_SAYS_TOO_MUCH"):
        said.check_pace(pace, 0.0)
    said.check_pace(pace, said.REFILL_SECONDS)


REQUESTS = st.one_of(
    st.builds(verbs.TellProgress, id=st.sampled_from("abc"), text=st.just("x")),
    st.builds(verbs.Complain, id=st.sampled_from("abc"), kind=st.just("other"), text=st.just("x")),
    st.builds(verbs.Ask, id=st.sampled_from("abc"), text=st.just("x")),
    st.builds(verbs.DeclareArtifact, id=st.sampled_from("abc"), path=st.sampled_from(["a", "b", "a/../b"])),
)


@given(st.lists(st.tuples(REQUESTS, st.booleans()), max_size=30))
def test_daemon_that_forgets_nothing_and_one_that_is_restarted_agree(requests: list[tuple[said.Told, bool]]) -> None:
    """Between any two requests the daemon may be restarted, and the last request be said again."""
    now = said.Said()
    for request, is_restarted in requests:
        now = hear(now, request).said
        if is_restarted:
            now = msgspec.json.decode(msgspec.json.encode(now), type=said.Said)
            again = hear(now, request)
            assert again.said == now
    assert len(now.questions) == len({one.id for one in now.questions}) <= 3
    assert len(now.complaints) == len(set(now.complaints)) <= 3
    assert len(now.artifacts) == len(set(now.artifacts)) <= 2
