"""The hooks of `make docs`.

A block of code that is a file has its name as a title. Links from a page to a file of the repository, which the site
has no page for, become plain text, because no address of the repository is known; one to a file that does not exist
ends the build. A folder in `nav` stands for its pages.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FILE = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Returns the config with the folders in `nav` replaced by what is in them, the folder's README first."""
    config["nav"] = _expanded(config["nav"])
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Returns the page with the names of files as titles, and links to files outside the documents replaced."""
    source = Path(page.file.abs_src_path)

    def replaced(link: re.Match[str]) -> str:
        target = (source.parent / link[2]).resolve()
        if target.is_relative_to(DOCS):
            return link[0]
        if not target.exists():
            raise PluginError(f"{source.relative_to(ROOT)} links to {link[2]}, which does not exist")
        return f'<span title="{target.relative_to(ROOT)}">{link[1]}</span>'

    return LINK.sub(replaced, FILE.sub(r'```\1 title="\2"', markdown))


def _expanded(entry: Any) -> Any:
    """A folder's name ends in a slash."""
    if isinstance(entry, list):
        return [_expanded(each) for each in entry]
    if isinstance(entry, dict):
        return {title: _expanded(each) for title, each in entry.items()}
    if not entry.endswith("/"):
        return entry
    pages = sorted((DOCS / entry).glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
    return [str(page.relative_to(DOCS)) for page in pages]
