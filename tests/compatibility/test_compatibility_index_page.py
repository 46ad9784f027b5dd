"""The pages on compatibility link to what exists, and name functions that do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import flexgen as fg

FOLDER = Path(__file__).parents[2] / "docs" / "compatibility"
PAGES = sorted(FOLDER.glob("*.md"))


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing(page: Path, text: str) -> list[str]:
    """Links of the text that lead nowhere."""
    lost = []
    for link in re.findall(r"\]\(([^):]+)\)", text):
        name, _, anchor = link.partition("#")
        goal = (page.parent / name) if name else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_compatibility_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert missing(page, text) == []
    assert missing(page, "[a](nowhere.md) [b](exact.md#no-such-heading)") == ["nowhere.md", "exact.md#no-such-heading"]
    others = {other.name for other in PAGES} - {page.name}
    assert {name for name in others if f"({name}" not in text} == set()


def test_the_index_names_functions_that_exist() -> None:
    text = (FOLDER / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]\w+_\w+)`", text))
    assert len(named) > 8
    assert named - set(fg.compatibility.__all__) == set()
    assert fg.diagnose
    assert fg.adapters.MaskedLanguageModel
