"""The documentation as a whole: its links lead somewhere, a reader finds all pages, and the commands it shows exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agentina import errors
from agentina.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def links(page: Path) -> list[tuple[Path, str]]:
    """Files that a page links to, and the heading it means in each."""
    text = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", text)
    return [((page.parent / path).resolve() if path else page, heading) for path, heading in found]


def headings(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and GitLab make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    lost = [
        f"{target}#{heading}"
        for target, heading in links(page)
        if not target.exists() or (heading and heading not in headings(target))
    ]
    assert not lost


def test_readme_names_every_page() -> None:
    named = {target for target, _ in links(ROOT / "README.md")}
    missing = [page for page in PAGES[2:] if page not in named and page.parent not in named]
    assert not missing


def commands(text: str) -> Iterator[list[str]]:
    """Command lines of ours in ``text``: in its blocks of shell code, and between backticks."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    shown = "\n".join([*lines, *re.findall(r"`([^`\n]+)`", text)])
    shown = re.sub(r"\$\([^)]*\)", "…", shown)
    for found in re.findall(r"(?:^|[|&;] ?|sudo )agentina ([^|&;<>#\n]*)", shown, flags=re.MULTILINE):
        yield found.split()


def fault(words: list[str]) -> str:
    """What is wrong with a command line; empty: nothing."""
    command: click.Command = main.cli
    words = words[: words.index("--")] if "--" in words else words
    while isinstance(command, click.Group) and words and words[0][0].islower():
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            return f"there is no {words[0]!r}"
        command, words = found, words[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    known |= {"-h", "--help", "--root"}
    unknown = [word for word in words if word.startswith("-") and word != "-" and word.partition("=")[0] not in known]
    return f"{command.name} has no {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "adr"], ids=lambda page: page.name)
def test_commands_that_a_page_shows_exist(page: Path) -> None:
    assert [f"{' '.join(words)}: {fault(words)}" for words in commands(page.read_text()) if fault(words)] == []


def test_commands_that_remedies_name_exist() -> None:
    remedies = [entry.remedy for entry in errors.CATALOGUE.values()]
    assert [" ".join(words) for remedy in remedies for words in commands(remedy) if fault(words)] == []


@pytest.mark.parametrize("line", ["job lsit", "job list --al", "release keys sing x", "status --all --jsno"])
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    (words,) = commands(f"Say `agentina {line}`.")
    assert fault(words)
