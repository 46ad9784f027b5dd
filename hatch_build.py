"""The README as a package index shows it, where links into the source lead nowhere: they become names of files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def without_relative_links(text: str) -> str:
    """``[Page](docs/command.md)`` becomes ``Page (docs/command.md)``, and a picture its caption."""
    text = re.sub(r"!\[([^\]]*)\]\((?!https?:)[^)]*\)", r"*Picture: \1.*", text)
    text = re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)]*)\)", _named, text)
    title, _, rest = text.partition("\n")
    return f"{title}\n\n*Files that are named here, such as docs/command.md, are in the source distribution.*\n{rest}"


def _named(link: re.Match[str]) -> str:
    words, path = link.groups()
    return words if words == path else f"{words} ({path})"


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_relative_links(text)}
