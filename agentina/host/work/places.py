"""Where the tasks of an instance run: their files as they see them, and whether they could go on elsewhere."""

from __future__ import annotations

from agentina.executors import contract
from agentina.host.work import choices, doors, entries, records
from agentina.protocol import jobs
from agentina.runners import contract as runner_contract


class Places:
    """Knows the places that the executor gives to tasks, and what their runners need there."""

    def __init__(self, executor: contract.Executor, runners: choices.Runners) -> None:
        self._executor = executor
        self._runners = runners

    def seen(self, entry: entries.Entry, job: jobs.JobSpec, runner: runner_contract.Runner) -> runner_contract.Place:
        """A task's place, as the task sees it."""
        path = self._executor.place(entry.directory.path)
        directory = entry.directory if path is entry.directory.path else records.TaskDirectory(path)
        workspace = directory.workspace
        has_home = runner.needs_home or leaves_files(job)
        door = self._executor.door(entry.directory.path).inside / doors.socket_name(entry.task_id)
        return runner_contract.Place(
            workspace=workspace, home=directory.home if has_home else workspace, door=str(door)
        )

    def is_slot(self, entry: entries.Entry) -> bool:
        """Whether a task runs where the daemon cannot see its files."""
        return self._executor.place(entry.directory.path) != entry.directory.path

    def can_move(self, entry: entries.Entry) -> bool:
        """Whether a task can go on elsewhere."""
        job = entry.job
        runner = None if job is None else self._runners.find(entry, job)
        if job is None or runner is None:
            return False
        if job.checkpoint is not None:
            return True
        # Sessions are in the home.
        return runner.needs_home and bool(runner.session_directory(self.seen(entry, job, runner)))


def leaves_files(job: jobs.JobSpec) -> bool:
    """Whether files are collected when the job has ended."""
    return job.workspace.git is not None or bool(job.artifacts)
