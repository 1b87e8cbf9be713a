"""MkDocs hooks: pages of the site that are not Markdown files of docs/, and links that work in the repository too.

The README is the front page, and each notebook becomes a page. Links in the sources are those of the repository's web
view; here they become links between pages, and links to source files become plain text.
"""

import pathlib
import posixpath
import re
from typing import Any

import nbconvert
from mkdocs.structure.files import File, Files

# Pages made from files of the repository outside docs/.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "launch/README.md": "launch.md",
}

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
LIST_AFTER_TEXT = re.compile(r"^((?!- |  |\|).+)\n(?=- )", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages to the files of the site."""
    root = pathlib.Path(config.config_file_path).parent
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(root / source).read_text()))
    for notebook in sorted(pathlib.Path(config.docs_dir).glob("notebooks/*.ipynb")):
        body, resources = nbconvert.MarkdownExporter().from_filename(str(notebook))
        # Each notebook has a folder of pictures.
        name = notebook.stem
        for picture, content in resources["outputs"].items():
            body = body.replace(f"]({picture})", f"]({name}/{picture})")
            files.append(File.generated(config, f"notebooks/{name}/{picture}", content=content))
        files.append(File.generated(config, f"notebooks/{name}.md", content=body))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrites the text of a page, outside blocks of code."""
    uri = page.file.src_uri
    source = next((name for name, made in OUTSIDE.items() if made == uri), f"docs/{uri}")
    parts = FENCED.split(markdown)
    parts[::2] = [_for_site(text, source, uri) for text in parts[::2]]
    return "".join(parts)


def _for_site(text: str, source: str, uri: str) -> str:
    """Returns a text with links between pages, and an empty line before each list, which Python-Markdown needs."""
    return LIST_AFTER_TEXT.sub(r"\1\n\n", LINK.sub(lambda match: _link(*match.groups(), source, uri), text))


def _link(label: str, target: str, source: str, uri: str) -> str:
    """Returns the link of a page that was written for the file `source` of the repository; `uri` is the page."""
    name, anchor, fragment = target.partition("#")
    if not name or ":" in name:
        return f"[{label}]({target})"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    if path.endswith(".ipynb"):
        path = path.removesuffix(".ipynb") + ".md"
    page = OUTSIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
    if page is None:
        return label
    return f"[{label}]({posixpath.relpath(page, posixpath.dirname(uri) or '.')}{anchor}{fragment})"
