"""What a release looks at before it is let near a host's work: itself, and whether it understands what is there.

Runs as the daemons' user beside the daemon of the release before, changes nothing, and needs no network. Only what this
release could be to blame for counts: what the release before cannot read either is no news.

=============  =====================================================================================
check          fails when
=============  =====================================================================================
interpreter    this Python is not one that the release supports
modules        any module of a host's cannot be imported: a library is missing, or made for another
configuration  the instance's file does not validate: a key was taken away, or its meaning changed
identity       key, license and their signatures are not understood
outbox         its database cannot be read, or has not the tables this release expects
tasks          there are records of tasks, and none of them is understood
=============  =====================================================================================
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Final

import agentina
from agentina import errors
from agentina.host.instance import config, doctor, identity, outbox_file
from agentina.host.work import records
from agentina.protocol import names, units
from agentina.system import files, paths

_OLDEST_PYTHON: Final = (3, 11)
#: Packages of agentina's that a host does not need; their libraries come with another package.
_NOT_OF_HOSTS: Final = ("agentina.control", "agentina.__main__", "agentina.cli.reference")


def examine(instance: paths.InstancePaths) -> Iterator[doctor.Check]:
    """All checks, each as soon as it is known. A check that raises what it should not has failed, too."""
    looks: tuple[tuple[str, Callable[[paths.InstancePaths], str]], ...] = (
        ("interpreter", _interpreter),
        ("modules", _modules),
        ("configuration", _configuration),
        ("identity", _identity),
        ("outbox", _outbox),
        ("tasks", _tasks),
    )
    for name, look in looks:
        try:
            yield doctor.ok(name, look(instance))
        except errors.AgentinaError as error:
            yield doctor.failed(name, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, this release is not fit to run here
            yield doctor.fail(name, f"{type(error).__name__}: {error}", "This release is not fit to run here.")


def _interpreter(_: paths.InstancePaths) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        raise errors.PRECONDITION_FAILED(problems=f"Python {version} is too old")
    return f"agentina {agentina.__version__} on Python {version}"


def _modules(_: paths.InstancePaths) -> str:
    count = 0
    for module in pkgutil.walk_packages(agentina.__path__, "agentina."):
        if not module.name.startswith(_NOT_OF_HOSTS):
            importlib.import_module(module.name)
            count += 1
    return f"{count} modules can be imported"


def _configuration(instance: paths.InstancePaths) -> str:
    config.load(instance)
    return f"{instance.config} is understood"


def _identity(instance: paths.InstancePaths) -> str:
    who = identity.load(instance)
    if who is None or not who.agent_id:
        raise errors.INSTANCE_UNKNOWN(instance=instance.name, path=str(instance.identity))
    identity.load_license(instance, who)
    return f"agent {who.agent_id}"


def _outbox(instance: paths.InstancePaths) -> str:
    waiting, held = outbox_file.examine(instance.outbox)
    return f"{units.show_count(waiting, 'report')} to send, {units.show_count(held, 'task')} held"


def _tasks(instance: paths.InstancePaths) -> str:
    who = identity.load(instance)
    assert who is not None
    understood, problem = 0, None
    for path in sorted(instance.tasks.glob("*/job.json")):
        if not names.is_task_id(path.parent.name):
            continue
        try:
            content = files.read_bounded(path, limit=records.MAX_RECORD)
            records.read_record(content, path.parent.name, who.trusted_keys)
            understood += 1
        except FileNotFoundError:
            continue  # it ended meanwhile
        except errors.AgentinaError as error:
            problem = error
    # A single record that nobody understands is damaged; that is not the release's fault.
    if problem is not None and not understood:
        raise problem
    return f"{units.show_count(understood, 'record')} understood"
