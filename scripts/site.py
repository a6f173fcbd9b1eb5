"""Bring into the site what stands above docs/: the README as its first page, the changelog, and files to copy from."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

#: What stands where in the site.
BROUGHT = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "LICENSE": "LICENSE",
    "config.example.yaml": "config.example.yaml",
    "compose.yaml": "compose.yaml",
    "compose.scale.yaml": "compose.scale.yaml",
    "addon/DOCS.md": "home-assistant-app.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them to the files of the site."""
    for source, place in BROUGHT.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Have links lead to where a page or file stands in the site."""
    if page.file.src_uri in BROUGHT.values():
        markdown = re.sub(r"(\]\(|src=\")docs/", r"\1", markdown)
    for source, place in BROUGHT.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(source)}(?=[)#])", f"]({place}", markdown)
    return markdown
