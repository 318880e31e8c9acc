"""Rules for names that come from people, files and jobs. Names become path components, so they are strict."""

from __future__ import annotations

import re
from typing import Final

from agentina import errors

# With a slot's number it names the user of a task, of at most 31 characters (docs/adr/0009).
_INSTANCE: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,22}[a-z0-9])?")
_KEY: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?")
_ROLE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9._/:+-]{0,63}")
_RUNNER: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_RUNNER_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,39}")
#: What a job asks for: a runner, or a certain version of its program.
RUNNER_PATTERN: Final = f"^{_RUNNER.pattern}(@{_RUNNER_VERSION.pattern})?$"
_ENVIRONMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_TASK_ID: Final = re.compile(r"job_[0-9a-hjkmnp-tv-z]{16}\.[1-9][0-9]{0,5}")

#: Channels of releases, from the least to the most settled.
CHANNELS: Final = ("dev", "beta", "stable", "enterprise-lts")
#: Longest artifact name, in characters.
MAX_ARTIFACT_NAME: Final = 240


def check_instance(value: str) -> str:
    """Return ``value`` if it may name an instance; raise ``NAME_INVALID`` otherwise."""
    rule = "1 to 24 of a-z, 0-9, '-' and '_', starting and ending with a letter or digit"
    return _check(_INSTANCE, value, "instance", rule)


def check_key(value: str) -> str:
    """Return ``value`` if it may name a release key; raise ``NAME_INVALID`` otherwise."""
    rule = "1 to 32 of a-z, 0-9, '-' and '_', starting and ending with a letter or digit"
    return _check(_KEY, value, "key", rule)


def check_role(value: str) -> str:
    """Return ``value`` if it may name a role; raise ``NAME_INVALID`` otherwise."""
    return _check(_ROLE, value, "role", "1 to 32 of a-z, 0-9 and '-', starting and ending with a letter or digit")


def check_organization(value: str) -> str:
    """Return ``value`` if it may name an organization; raise ``NAME_INVALID`` otherwise."""
    rule = "1 to 32 of a-z, 0-9 and '-', starting and ending with a letter or digit"
    return _check(_ROLE, value, "organization", rule)


def check_operator(value: str) -> str:
    """Return ``value`` if it may name an operator; raise ``NAME_INVALID`` otherwise."""
    return _check(_KEY, value, "operator", "1 to 32 of a-z, 0-9, '-' and '_', starting and ending with letter or digit")


def check_label(key: str, value: str) -> None:
    """Raise ``NAME_INVALID`` unless ``key=value`` may be a label."""
    _check(_LABEL_KEY, key, "label", "1 to 63 letters, digits and . _ / -, starting and ending with letter or digit")
    _check(_LABEL_VALUE, value, f"value of label {key}", "at most 63 letters, digits and . _ / : + -")


def check_runner(value: str) -> str:
    """Return ``value`` if it may name a runner; raise ``NAME_INVALID`` otherwise."""
    return _check(_RUNNER, value, "runner", "1 to 40 of a-z, 0-9 and '-', starting with a letter or digit")


def check_runner_version(value: str) -> str:
    """Return ``value`` if it may name a version of a runner's program; raise ``NAME_INVALID`` otherwise."""
    rule = "1 to 40 letters, digits and . + _ -, starting with a letter or digit"
    return _check(_RUNNER_VERSION, value, "version of a runner", rule)


def check_environment(name: str) -> str:
    """Return ``name`` if it may be an environment variable; raise ``NAME_INVALID`` otherwise."""
    return _check(_ENVIRONMENT, name, "environment variable", "letters, digits and '_', not starting with a digit")


def check_artifact(name: str) -> str:
    """Return ``name`` if it is a safe relative path for an artifact; raise ``NAME_INVALID`` otherwise.

    Forward slashes separate parts; no part is empty, ``.`` or ``..``; no control characters; at most
    :data:`MAX_ARTIFACT_NAME` characters.
    """
    parts = name.split("/")
    safe = (
        0 < len(name) <= MAX_ARTIFACT_NAME
        and "\\" not in name
        and name.isprintable()
        and all(part not in {"", ".", ".."} for part in parts)
    )
    if not safe:
        raise errors.NAME_INVALID(
            what="artifact", value=name[:80], rule="a relative path without '..', empty parts or control characters"
        )
    return name


def is_task_id(value: str) -> bool:
    """Whether ``value`` has the form of a task id (``job_<16 base32 characters>.<number>``)."""
    return _TASK_ID.fullmatch(value) is not None


def _check(pattern: re.Pattern[str], value: str, what: str, rule: str) -> str:
    if pattern.fullmatch(value) is None:
        raise errors.NAME_INVALID(what=what, value=value[:80], rule=rule)
    return value
