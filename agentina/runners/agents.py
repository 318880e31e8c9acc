"""What runners of AI agents have in common: a command line that works without a person and prints a stream of events.

Prompts, instructions and the configuration of tool servers go into files in the task's home and onto stdin, never into
argv: that is bounded by the kernel (128 KiB an argument, execve(2)) and everybody on the host can read it. What a
command line is told besides serves one end: nobody is asked, nothing is updated or reported behind our back, and
everything it keeps is below HOME.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from agentina import errors
from agentina.inside import toolserver
from agentina.protocol import jobs
from agentina.runners import command, contract, copies
from agentina.system import clock

#: Directory in the home for what is ours.
OWN: Final = ".agentina"
#: What an agent is told that goes on with its session elsewhere.
CONTINUE: Final = (
    "You were interrupted, and go on in another place now. The files of the workspace are as they were a little after"
    " the last thing you remember; processes that you had started are gone. Look at what is done, and finish the task."
)
PROMPT: Final = f"{OWN}/prompt.md"
#: The name of the server that has the task's verbs as tools.
SERVER: Final = "agentina"
#: Characters of what is said of a program.
_MAX_SHOWN: Final = 256
#: Started by a shell that opens the prompt as stdin and then becomes the command line; a pipe would have to be filled.
_WITH_INPUT: Final = 'exec "$@" <"$0"'


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a job wants of an AI agent."""

    payload: jobs.Payload
    place: contract.Place
    #: The job's variables, in plain values.
    environment: dict[str, str]

    def path(self, name: str) -> str:
        """A file of the home as the task sees it."""
        return str(self.place.home / name)


@dataclasses.dataclass(kw_only=True, slots=True)
class Invocation:
    """How a command line is called."""

    arguments: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    #: The command line finds the prompt by itself, by its arguments.
    has_prompt: bool = False
    #: Shell commands that run before it, with it as ``"$@"``: for what is known only inside the task, such as where
    #: the gateway is (agentina/gateway/forwarder.py).
    prelude: str = ""

    def __repr__(self) -> str:
        return "Invocation()"


class AgentRunner:
    """One AI agent's command line."""

    needs_home = True

    def __init__(
        self,
        name: str,
        program: str,
        invoke: Callable[[Wish], Invocation],
        *,
        stream: str,
        environment: dict[str, str] | None = None,
        takes_servers: bool = True,
        sessions: Callable[[contract.Place], str] | None = None,
        copy: copies.Found | None = None,
    ) -> None:
        self.name = name
        #: A path, or a name that is looked for in :data:`contract.SEARCH_PATH`.
        self.program = program if copy is None else str(copy.program)
        #: The host's own copy that it starts.
        self.copy = copy
        self.stream = stream
        self._invoke = invoke
        self._environment = environment or {}
        #: It can be told of servers of tools.
        self._takes_servers = takes_servers
        self._sessions = sessions

    def session_directory(self, place: contract.Place) -> str:
        """See :meth:`contract.Runner.session_directory`."""
        return "" if self._sessions is None else self._sessions(place)

    def choose(self) -> contract.Chosen | None:
        """See :meth:`contract.Runner.choose`."""
        path = shutil.which(self.program, path=contract.SEARCH_PATH)
        if path is None or not (self.copy is None or self.copy.is_there()):
            raise errors.RUNNER_MISSING(runner=self.name if self.copy is None else self.copy.name, path=self.program)
        if self.copy is not None:
            return contract.Chosen(runner=self.copy.name, version=self.copy.copy.version, program=self.copy.shown)
        real = Path(path).resolve()
        shown = f"{real} of {clock.show_time(int(real.stat().st_mtime * 1000))}"
        return contract.Chosen(runner=self.name, program=shown[-_MAX_SHOWN:])

    def plan(self, job: jobs.JobSpec, *, place: contract.Place) -> contract.Plan:
        """See :meth:`contract.Runner.plan`."""
        payload = with_verbs(job.payload, place.door) if self._takes_servers else job.payload
        wish = Wish(payload=payload, place=place, environment=jobs.environment_values(job))
        call = self._invoke(wish)
        files = dict(call.files)
        source = "/dev/null"
        if job.payload.prompt is not None:
            files[PROMPT] = job.payload.prompt
        if not call.has_prompt:
            source = prompt_path(wish)
        return contract.Plan(
            argv=["/bin/sh", "-c", call.prelude + _WITH_INPUT, source, self.program, *call.arguments],
            environment={**call.environment, **self._environment},
            verify=None if job.verify is None else command.command_line(job.verify),
            files=files,
            oom="continue",
        )


def with_verbs(payload: jobs.Payload, door: str) -> jobs.Payload:
    """``payload`` with the server that has the task's verbs as tools, unless the job does without or has its own."""
    if not door or not payload.task_tools or SERVER in payload.mcp_servers:
        return payload
    # By the very Python that runs here: a task sees the same system. -I -S: nothing of the task's gets in.
    verbs = jobs.McpServer(command=[sys.executable, "-I", "-S", toolserver.__file__, door])
    return msgspec.structs.replace(payload, mcp_servers={**payload.mcp_servers, SERVER: verbs})


def prompt_path(wish: Wish) -> str:
    """Where the prompt is, as the task sees it."""
    if wish.payload.prompt_file is not None:
        return str(wish.place.workspace / wish.payload.prompt_file)
    return wish.path(PROMPT)


def option(name: str, value: object) -> list[str]:
    """``name value``; nothing when there is no value."""
    return [] if value is None else [name, str(value)]


def to_json(document: Any) -> str:
    """A configuration file."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def refuse(key: str, problem: str) -> errors.AgentinaError:
    """The error for a payload that a runner cannot do anything with."""
    return errors.INPUT_INVALID(where=f"job.payload.{key}", problem=problem)
