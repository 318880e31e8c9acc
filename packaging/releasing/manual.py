"""Manual pages from the reference in docs/, which is itself generated from the code: one source, one truth.

``agentina(1)`` lists the commands, ``agentina-<command>(1)`` has each, ``agentina.yaml(5)``, ``agentina-policy(5)`` and
``agentina-runners(5)`` the configuration, ``agentina-job(5)`` the job format, ``agentina-errors(7)`` every error. Only
the Markdown that the generator of those pages writes is understood: headings, paragraphs, lists, quotes, tables and
fenced code.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_NOTE: Final = re.compile(r"<!--.*?-->\n", re.DOTALL)
_INLINE: Final = re.compile(r"``(.+?)``|`([^`]+)`|\[([^\]]+)\]\([^)]+\)|\*\*(.+?)\*\*")
_FILES: Final = """\
## Files

| file | what |
| --- | --- |
| `/etc/agentina/<instance>.yaml` | configuration, agentina.yaml(5) |
| `/etc/agentina/policy.yaml` | what this host accepts, agentina-policy(5) |
| `/var/lib/agentina/<instance>` | key, license, reports and tasks of an instance |
| `/opt/agentina/releases` | releases; `/opt/agentina/instances` binds an instance to another than the package's |
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One page: ``agentina-job(1)`` is name ``agentina-job``, section 1."""

    name: str
    section: int
    #: One line, for whatis(1).
    summary: str
    #: Markdown; its headings of the second level become sections.
    body: str


def pages(docs: Path) -> Iterator[Page]:
    """Every page, from the Markdown below ``docs``."""
    reference = docs / "reference"
    yield from _commands(_read(reference / "cli.md"), _read(reference / "exit-codes.md"))
    configuration, policy, runners = _parts(_read(reference / "configuration.md"), "# ")
    yield Page("agentina.yaml", 5, "configuration of an agentina instance", f"## Description\n\n{configuration[1]}")
    yield Page("agentina-policy", 5, "what an agentina host accepts", f"## Description\n\n{policy[1]}")
    yield Page("agentina-runners", 5, "runners of an agentina host", f"## Description\n\n{runners[1]}")
    (_, jobs), *_ = _parts(_read(reference / "jobs.md"), "# ")
    yield Page("agentina-job", 5, "format of agentina's job files", f"## Description\n\n{jobs}")
    (_, troubles), *_ = _parts(_read(docs / "troubleshooting.md"), "# ")
    yield Page("agentina-errors", 7, "errors of agentina, their causes and remedies", f"## Description\n\n{troubles}")


def render(page: Page, *, version: str, epoch: int) -> str:
    """The page as man(7) has it."""
    date = time.strftime("%Y-%m-%d", time.gmtime(epoch))
    lines = [
        f'.TH "{_escape(page.name.upper())}" "{page.section}" "{date}" "agentina {_escape(version)}" "agentina"',
        # No hyphenation, and no stretched lines: commands and paths stay as they are.
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{_escape(page.name)} \\- {_inline(page.summary)}",
        *_blocks(page.body),
    ]
    return "\n".join(lines) + "\n"


def _commands(text: str, exit_codes: str) -> Iterator[Page]:
    introduction = _parts(text, "# ")[0][1].split("\n## ", 1)[0]
    listed, found = [], dict[str, list[str]]()
    for title, body in _parts(text, "## "):
        listed.append(f"## {title}\n")
        rows = []
        for command, described in _parts(body, "### "):
            name = command.split()[1]
            found.setdefault(name, []).append(f"## {command}\n\n{_sectioned(described)}")
            rows.append(f"| `{command}` | {_first_paragraph(described)} |")
        listed.append("| command | does |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    body = "\n".join(
        [f"## Synopsis\n\n```\nagentina COMMAND [OPTIONS]\n```\n\n## Description\n\n{introduction}", *listed]
    )
    codes = _parts(exit_codes, "# ")[0][1]
    body += f"\n## Exit status\n\n{codes}\n{_FILES}"
    yield Page("agentina", 1, "run fleets of AI coding agents on hosts you own", body)
    for name, parts in found.items():
        summary = _first_paragraph(parts[0].split("\n", 1)[1]) if len(parts) == 1 else f"{name} commands of agentina"
        also = "## See also\n\nagentina(1), agentina.yaml(5), agentina-errors(7)\n"
        yield Page(f"agentina-{name}", 1, summary.rstrip("."), "\n".join([*parts, also]))


def _sectioned(described: str) -> str:
    """A command's description with its examples titled."""
    return described.replace("```sh\n", "Examples:\n\n```\n")


def _first_paragraph(text: str) -> str:
    """The first paragraph that is text."""
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return " ".join(without_code.strip().split("\n\n")[0].split())


def _read(path: Path) -> str:
    return _NOTE.sub("", path.read_text("utf-8"))


def _parts(text: str, marker: str) -> list[tuple[str, str]]:
    """The text cut at headings of one level: titles and bodies. What comes before the first is left out."""
    parts: list[tuple[str, list[str]]] = []
    in_code = False
    for line in text.splitlines(keepends=True):
        in_code ^= line.startswith("```")
        if line.startswith(marker) and not in_code:
            parts.append((line.removeprefix(marker).rstrip("\n"), []))
        elif parts:
            parts[-1][1].append(line)
    return [(title, "".join(lines)) for title, lines in parts]


def _blocks(text: str) -> Iterator[str]:
    lines = iter(text.splitlines())
    paragraph: list[str] = []
    for line in lines:
        kind = _kind(line)
        if kind == "text":
            paragraph.append(line.removeprefix("> "))
            continue
        if paragraph:
            yield from (".PP", _inline(" ".join(paragraph)))
            paragraph = []
        if kind == "code":
            yield from _code(lines)
        elif kind == "table":
            yield from _table(line, lines)
        elif kind == "item":
            yield from (".IP \\(bu 2", _inline(line[2:]))
        elif kind == "heading":
            level, _, title = line.partition(" ")
            yield f".SH {_inline(title).upper()}" if len(level) <= len("##") else f".SS {_inline(title)}"
    if paragraph:
        yield from (".PP", _inline(" ".join(paragraph)))


def _kind(line: str) -> str:
    starts = {"```": "code", "| ": "table", "- ": "item", "#": "heading"}
    return next((kind for start, kind in starts.items() if line.startswith(start)), "text" if line.strip() else "blank")


def _code(lines: Iterable[str]) -> Iterator[str]:
    yield from (".PP", ".RS 4", ".EX")
    for line in lines:
        if line.startswith("```"):
            break
        yield _guarded(_escape(line))
    yield from (".EE", ".RE")


def _table(header: str, lines: Iterable[str]) -> Iterator[str]:
    """Rows as paragraphs with a tag: the first cell; the last is the text, and those between are named."""
    titles = _cells(header)
    for line in lines:
        if not line.startswith("|"):
            break
        first, *others = _cells(line)
        if set(first) <= {"-", " "}:
            continue
        named = [f"{title}: {cell}." for title, cell in zip(titles[1:-1], others[:-1], strict=True) if cell]
        yield from (".TP", _bold(first), _inline(" ".join([*named, *others[-1:]])))


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _bold(text: str) -> str:
    return f"\\fB{_escape(_INLINE.sub(lambda match: next(filter(None, match.groups())), text))}\\fR"


def _inline(text: str) -> str:
    """Text with its code and emphasis in bold."""
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts.append(_escape(text[end : match.start()]))
        link = match[3]
        parts.append(_escape(link) if link else f"\\fB{_escape(next(filter(None, match.groups())))}\\fR")
        end = match.end()
    parts.append(_escape(text[end:]))
    return _guarded("".join(parts))


def _escape(text: str) -> str:
    """Text that groff prints as it stands (groff_char(7)); hyphens become what can be typed again."""
    safe = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    )
    return safe.replace("~", "\\(ti").replace("…", "...").replace("→", "->")


def _guarded(line: str) -> str:
    """A line of text that is not taken for a request."""
    return f"\\&{line}" if line.startswith(".") else line
