"""Find the release to run and run its command line in this very process. ``agentina`` and every unit start here.

Which release, in this order, and the first that can be imported runs:

1. what ``/opt/agentina/instances/<instance>`` links to, for the instance that ``--instance`` names (else ``default``);
   not for the control plane, which goes with the package it came with,
2. the package's own version below ``/opt/agentina/releases``,
3. the package's own copy in ``/usr/lib/agentina/release``, which is there before the second is (while the package is
   being configured) and after somebody deleted it,
4. any other release, the newest first.

Started as ``launch --trial …`` it runs what ``/opt/agentina/trials/<instance>`` links to, and nothing else: on trial a
release stands or falls by itself.

The link is resolved to a real path once, at the start, so that a process never changes releases while it runs. A
release is ``lib`` (for every Python) and a ``lib-cpXY`` for each Python that it has compiled libraries for.

Started as ``python3 -I -S -B``: neither the caller's environment nor this host's Python packages get in, and nobody
writes byte code where the package manager would not find it again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator

TYPE_CHECKING = False  # importing typing for this would cost more than all the rest
if TYPE_CHECKING:
    import re
    from typing import Any

BASE = "/usr/lib/agentina"
OPT = "/opt/agentina"
#: Libraries that only the control plane's package brings, and the commands that want them.
CONTROL_PLANE = "/usr/lib/agentina-control-plane"
CONTROL_PLANE_COMMANDS = frozenset({"control-plane", "demo"})
#: Characters of an instance's name (agentina.protocol.names); what has others is refused by the command line later.
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
#: Exit code of a fault of agentina itself (agentina.errors.Exit.INTERNAL), which a restart does not cure.
_NOTHING_RUNS = 70
#: Stages before a final release, in order (PEP 440).
_STAGES = ("a", "b", "rc")


def main() -> None:
    """Run the command line; does not return."""
    # Until a command runs nothing is to be undone, and KeyboardInterrupt in an import looks like a broken release.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    on_trial = sys.argv[1:2] == ["--trial"]
    if on_trial:
        del sys.argv[1]
    code = launch(sys.argv[1:], on_trial=on_trial)
    sys.exit(code)


def launch(arguments: list[str], *, base: str = BASE, opt: str = OPT, on_trial: bool = False) -> int | None:
    """Run ``arguments`` with the first release that can be imported, or ``on_trial`` with the one on trial."""
    tag = python_tag()
    passed_over = []
    for release in [trial(arguments, opt)] if on_trial else candidates(arguments, base=base, opt=opt):
        if not is_usable(release, tag):
            passed_over.append(f"{release} has nothing for {tag}")
            continue
        try:
            run = load(release, tag, arguments)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a release, the next one may run
            passed_over.append(f"{release} cannot be imported ({type(error).__name__}: {error})")
            continue
        if passed_over:
            _say(f"using {release}, for {'; '.join(passed_over)}")
        return run()
    problem = "; ".join(passed_over) or f"there is none below {opt}/releases or in {base}/release"
    _say(f"no release of agentina runs here: {problem}. Install the newest agentina package for this system.")
    return _NOTHING_RUNS


def trial(arguments: list[str], opt: str) -> str:
    """Real path of the release that is on trial for the instance."""
    return os.path.realpath(f"{opt}/trials/{instance_of(arguments)}")


def candidates(arguments: list[str], *, base: str = BASE, opt: str = OPT) -> Iterator[str]:
    """Real paths of the releases to try, the wanted one first; each once, and the others only when asked for."""
    releases = f"{opt}/releases"
    seen = set()
    for path in _wanted(arguments, base, opt):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            yield real
    try:
        others = os.listdir(releases)
    except OSError:
        return
    others = [name for name in others if is_version(name) and f"{releases}/{name}" not in seen]
    for name in sorted(others, key=version_key, reverse=True):
        yield f"{releases}/{name}"


def _wanted(arguments: list[str], base: str, opt: str) -> Iterator[str]:
    link = f"{opt}/instances/{instance_of(arguments)}"
    if not wants_control_plane(arguments) and os.path.lexists(link):
        yield link
    try:
        with open(f"{base}/release/version", encoding="ascii") as file:
            yield f"{opt}/releases/{file.read(64).strip()}"
    except (OSError, UnicodeDecodeError):
        return
    yield f"{base}/release"


def instance_of(arguments: list[str]) -> str:
    """The instance a command line is about."""
    for index, argument in enumerate(arguments):
        if argument == "--":
            break
        option, equals, value = argument.partition("=")
        if option == "--instance":
            value = value if equals else "".join(arguments[index + 1 : index + 2])
            return value if value and _NAME.issuperset(value) else "default"
    return "default"


def wants_control_plane(arguments: list[str]) -> bool:
    """Whether a command line needs the control plane's libraries."""
    return bool(arguments) and arguments[0] in CONTROL_PLANE_COMMANDS


def python_tag() -> str:
    """The running interpreter as wheels name it, such as ``cp311``."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


def is_usable(release: str, tag: str) -> bool:
    """Whether a release is complete and made for this interpreter."""
    return os.path.isdir(f"{release}/lib/agentina") and os.path.isdir(f"{release}/lib-{tag}")


def load(release: str, tag: str, arguments: list[str]) -> Callable[[], int | None]:
    """Import a release's command line. When that fails, nothing of the release stays imported.

    Raises:
        Exception: Whatever the release's modules raise.

    """
    roots = [release, *([CONTROL_PLANE] if wants_control_plane(arguments) else [])]
    added = [f"{root}/{directory}" for root in roots for directory in ("lib", f"lib-{tag}")]
    before = set(sys.modules)
    # After the standard library: a release can hide none of it.
    sys.path += added
    try:
        from agentina.cli import main as command_line  # noqa: PLC0415 - this import is what this module is for

        run: Callable[[], int | None] = command_line.main
    except BaseException:
        del sys.path[-len(added) :]
        for name in set(sys.modules) - before:
            del sys.modules[name]
        raise
    return run


def is_version(name: str) -> bool:
    """Whether a directory's name is a version; temporary ones of an installation begin with a dot."""
    return _version(name) is not None


def version_key(name: str) -> tuple[Any, ...]:
    """Sorts versions in the order of PEP 440: 1.9 < 1.10.dev1 < 1.10a1 < 1.10rc1 < 1.10 < 1.10.post1."""
    match = _version(name)
    if match is None:
        return ()
    numbers, stage, stage_number, post, dev = match.groups()
    release = [int(number) for number in numbers.split(".")]
    while release and release[-1] == 0:
        release.pop()
    # A bare .devN comes before the first alpha; a final release after every candidate.
    final = (-1 if dev and not post else len(_STAGES), 0)
    before = (_STAGES.index(stage), int(stage_number)) if stage else final
    return release, before, int(post) if post else -1, (0, int(dev)) if dev else (1, 0)


def _version(name: str) -> re.Match[str] | None:
    import re  # noqa: PLC0415 - only when the releases that should run do not

    return re.fullmatch(r"(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?(?:\.post(\d+))?(?:\.dev(\d+))?", name, re.ASCII)


def _say(text: str) -> None:
    print(f"agentina: {text}", file=sys.stderr)  # noqa: T201 - there is nothing else to say it with yet
