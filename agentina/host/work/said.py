"""What a task has said to its daemon, and what follows from the next thing it says. Pure.

``said.json`` in the task's directory holds it, so that a daemon that was restarted counts on. A request has an id of
the asker's; one that was said before, by whoever got no answer, changes nothing and is answered the same.

| verb | changes | is told to the control plane as | at most |
| --- | --- | --- | --- |
| progress | the present progress | a ``progress`` report | - |
| complain | one more complaint | an anomaly | 50 |
| ask | a question without an answer | an anomaly | 20 |
| answer | nothing | - | - |
| artifact | one more path, if it is new | - (it is collected at the end) | 200 |
| checkpoint | nothing (:mod:`agentina.host.work.moving`) | an artifact | - |
| budget | nothing | - | - |

All verbs together: 20 at once, then one in two seconds. What is over a limit is refused in words that an AI agent
understands, so that it goes on with its work instead.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable
from typing import Final

import msgspec

from agentina import errors
from agentina.protocol import units, verbs, wire
from agentina.system import buckets

FILE: Final = "said.json"
#: Largest file read, in bytes: all questions and answers of the longest kind.
MAX_FILE: Final = 4 << 20
MAX_COMPLAINTS: Final = 50
MAX_QUESTIONS: Final = 20
MAX_ARTIFACTS: Final = 200
#: Notices that wait for the task to say something.
MAX_NOTICES: Final = 20
#: Requests at once, and seconds until one more is let in.
BURST: Final = 20
REFILL_SECONDS: Final = 2.0


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One question and, once there is one, its answer."""

    id: str
    text: str
    at_ms: int
    answer: str | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a task has said so far."""

    progress: wire.Progress | None = None
    #: Ids of the requests.
    complaints: list[str] = []
    #: The first has the number 1.
    questions: list[Question] = []
    #: Paths in the workspace.
    artifacts: list[str] = []
    #: What the task is to be told with its next word.
    notices: list[str] = []
    #: The number of the last answer of an operator that was taken over.
    answered: int = 0


#: Names of questions begin with it.
_QUESTION: Final = "question:"

#: Requests that are answered from what was said.
Told = verbs.TellProgress | verbs.Complain | verbs.Ask | verbs.Hear | verbs.DeclareArtifact


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What follows from a request."""

    said: Said
    answer: verbs.Answer
    #: It has not been said before: the control plane is to hear of it.
    is_new: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """An anomaly to be raised (:meth:`agentina.host.work.anomalies.Anomalies.report`)."""

    kind: str
    code: str
    summary: str
    evidence: dict[str, str]
    name: str


def bucket(now: float) -> buckets.Bucket:
    """What a task's requests are counted with."""
    return buckets.Bucket(burst=BURST, refill_seconds=REFILL_SECONDS, now=now)


def check_pace(requests: buckets.Bucket, now: float) -> None:
    """Let one more request in.

    Raises:
        AgentinaError: ``TASK_SAYS_TOO_MUCH``.

    """
    if not requests.take(now):
        pace = f"{BURST} requests at once, and then one every {REFILL_SECONDS:.0f} s"
        raise errors.TASK_SAYS_TOO_MUCH(problem=f"a task may make {pace}")


def hear(said: Said, request: Told, *, workspace: str, now_ms: int) -> Step:
    """What follows from ``request``.

    Args:
        said: What was said before.
        request: What is said now.
        workspace: The workspace's path as the task sees it.
        now_ms: The wall clock.

    Raises:
        AgentinaError: ``TASK_SAYS_TOO_MUCH`` or ``INPUT_INVALID``.

    """
    if isinstance(request, verbs.TellProgress):
        progress = wire.Progress(text=request.text, percent=request.percent, at_ms=now_ms)
        return Step(msgspec.structs.replace(said, progress=progress), verbs.Answer(text="noted"), is_new=True)
    if isinstance(request, verbs.Complain):
        return _complain(said, request)
    if isinstance(request, verbs.Ask):
        return _ask(said, request, now_ms)
    if isinstance(request, verbs.Hear):
        return Step(said, answer_to(said, request.question))
    assert isinstance(request, verbs.DeclareArtifact), request
    return _declare(said, request.path, workspace)


def finding(task_id: str, request: verbs.Complain | verbs.Ask, after: Said) -> Finding:
    """What a complaint or question is to the control plane. Named: said again, also to another daemon, it is one."""
    if isinstance(request, verbs.Ask):
        number = next(number for number, one in enumerate(after.questions, 1) if one.id == request.id)
        name = f"{_QUESTION}{task_id}:{number}"
        return Finding(kind="question", code=errors.TASK_QUESTION.code, summary=request.text, evidence={}, name=name)
    about = request.about or request.text
    code = f"COMPLAINT_{request.kind.upper().replace('-', '_')}"
    return Finding(
        kind="complaint",
        code=code,
        # No colon: `missing-secret: NAME` reads like a secret and its value, which are masked on the way.
        summary=f"{request.kind} ({about})",
        evidence={"it says": request.text} if request.about else {},
        name=f"complaint:{task_id}:{request.id}",
    )


def take_answers(said: Said, answers: Iterable[wire.Answer]) -> Said | None:
    """``said`` with what operators say, each answer once; None: it has them all.

    An answer to a question becomes that, any other is something to tell the task.
    """
    new = sorted((one for one in answers if one.number > said.answered), key=lambda one: one.number)
    if not new:
        return None
    for one in new:
        said = _take_answer(msgspec.structs.replace(said, answered=one.number), one)
    return said


def _take_answer(said: Said, given: wire.Answer) -> Said:
    number = given.report.rpartition(":")[2] if given.report.startswith(_QUESTION) else ""
    if not number.isdecimal() or not 1 <= int(number) <= len(said.questions):
        return noticed(said, f"an operator answers what was reported about this task ({given.anomaly}): {given.text}")
    questions = list(said.questions)
    questions[int(number) - 1] = msgspec.structs.replace(questions[int(number) - 1], answer=given.text)
    return msgspec.structs.replace(said, questions=questions)


def noticed(said: Said, text: str) -> Said:
    """``said`` with something to tell the task; the oldest gives way."""
    return msgspec.structs.replace(said, notices=[*said.notices, text][-MAX_NOTICES:])


def _complain(said: Said, request: verbs.Complain) -> Step:
    answer = verbs.Answer(
        text="An operator is told. Go on with whatever does not depend on it; if nothing does, end and say why."
    )
    if request.id in said.complaints:
        return Step(said, answer)
    _check_room("complaints", len(said.complaints), MAX_COMPLAINTS)
    return Step(msgspec.structs.replace(said, complaints=[*said.complaints, request.id]), answer, is_new=True)


def _ask(said: Said, request: verbs.Ask, now_ms: int) -> Step:
    known = next((number for number, one in enumerate(said.questions, 1) if one.id == request.id), None)
    if known is not None:
        return Step(said, answer_to(said, known))
    _check_room("questions", len(said.questions), MAX_QUESTIONS)
    asked = Question(id=request.id, text=request.text, at_ms=now_ms)
    said = msgspec.structs.replace(said, questions=[*said.questions, asked])
    return Step(said, answer_to(said, len(said.questions)), is_new=True)


def answer_to(said: Said, number: int) -> verbs.Answer:
    """What the task is told of question ``number``.

    Raises:
        AgentinaError: ``INPUT_INVALID``.

    """
    if number > len(said.questions):
        asked = units.show_count(len(said.questions), "question")
        raise errors.INPUT_INVALID(where="question", problem=f"this task has asked {asked}")
    answer = said.questions[number - 1].answer
    text = "answered" if answer is not None else f"no answer yet; ask for the answer to question {number} later"
    return verbs.Answer(text=text, question=number, answer=answer)


def _declare(said: Said, path: str, workspace: str) -> Step:
    inside = posixpath.normpath(path)
    if inside.startswith("/"):
        inside = posixpath.relpath(inside, workspace)
    if inside == "." or inside.split("/")[0] == ".." or not inside.isprintable():
        problem = f"{path!r} is no file or directory inside the workspace, {workspace}"
        raise errors.INPUT_INVALID(where="path", problem=problem)
    answer = verbs.Answer(text=f"{inside} is kept when the task has ended")
    if inside in said.artifacts:
        return Step(said, answer)
    _check_room("artifacts", len(said.artifacts), MAX_ARTIFACTS)
    return Step(msgspec.structs.replace(said, artifacts=[*said.artifacts, inside]), answer, is_new=True)


def _check_room(what: str, found: int, most: int) -> None:
    if found >= most:
        raise errors.TASK_SAYS_TOO_MUCH(problem=f"a task may have {most} {what}")
