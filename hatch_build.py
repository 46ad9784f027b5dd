"""The README as a package index shows it, where relative links lead nowhere.

With ``[project.urls] Source`` in pyproject.toml they lead to the files of that release there; without, they become
names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]*)\)"


def for_an_index(text: str, source: str | None, version: str) -> str:
    """``[Page](docs/command.md)`` becomes a link to the source, or else ``Page (docs/command.md)``; pictures, captions.

    Args:
        text: Markdown.
        source: where a release's files are, at ``blob/v1.0/`` and ``raw/v1.0/``.
        version: of the release.
    """

    def absolute(link: re.Match[str]) -> str:
        mark, words, path = link.groups()
        if source is not None:
            return f"{mark}[{words}]({source.rstrip('/')}/{'raw' if mark else 'blob'}/v{version}/{path})"
        if mark:
            return f"*Picture: {words}.*"
        return words if words == path else f"{words} ({path})"

    text = re.sub(_RELATIVE, absolute, text)
    if source is not None:
        return text
    title, _, rest = text.partition("\n")
    return f"{title}\n\n*Files that are named here, such as docs/command.md, are in the source distribution.*\n{rest}"


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        init = (root / "flexgen" / "__init__.py").read_text(encoding="utf-8")
        version = re.findall(r'^__version__ = "(.+)"$', init, flags=re.MULTILINE)[0]
        page = for_an_index(text, metadata.get("urls", {}).get("Source"), version)
        metadata["readme"] = {"content-type": "text/markdown", "text": page}
