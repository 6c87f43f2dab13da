"""What the documentation points to is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def files_named(page: Path) -> Iterator[str]:
    """Yield every word of a page that looks like a source file's or a source folder's path."""
    yield from re.findall(r"(?<![\w/.-])(?:[a-z_0-9]+/)*[a-z_0-9]+(?:\.bpf)?\.(?:py|c|h)\b", page.read_text())


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_source_files_that_are_named_are_there(name: str) -> None:
    folders = ("flannel_ebpf", "bpf", "tests", "tools")
    files = [f"/{path}" for folder in folders for path in (TOP / folder).rglob("*.*")]
    named = set(files_named(TOP / name))
    assert len(named) > 5
    assert {one for one in named if not any(file.endswith(f"/{one}") for file in files)} == set()
