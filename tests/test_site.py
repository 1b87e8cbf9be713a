"""The site: every page is in its navigation, the API pages name what exists, and `mkdocs build --strict` is clean."""

import importlib
import importlib.util
import re
import subprocess
import sys

import pytest
from test_docs import ROOT, script

DOCS = ROOT / "docs"
MADE = {
    "index.md",
    "contributing.md",
    "changes.md",
    "launch.md",
}  # from the README and its neighbours, by docs/site_hooks.py


def site_packages():
    """Skips the test unless the packages of the extra `docs` are installed."""
    for name in ("mkdocs", "material", "mkdocstrings", "nbconvert"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'{name} is not installed: pip install -e ".[docs]"')


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    pages = {
        str(path.relative_to(DOCS).with_suffix(".md")) for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb")
    }
    assert len(listed) == len(set(listed)) and set(listed) == pages | MADE


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda page: page.stem)
def test_names_of_the_api_pages_exist_and_are_documented(page):
    """Each name is that of the module which defines the object, so that it is found without imports."""
    names = re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        assert found.__doc__, name
        assert getattr(found, "__module__", module) == module, f"{name}: defined in {found.__module__}"


def test_public_losses_and_views_are_on_their_pages():
    for room in ("losses", "views"):
        listed = set(re.findall(r"^::: \S+\.(\w+)$", (DOCS / f"api/{room}.md").read_text(), re.MULTILINE))
        public = {name for name in importlib.import_module(f"ssljax.{room}").__all__ if not name.isupper()}
        assert public - listed == set()


def test_gallery_equals_the_docstrings():
    maker = script("docs/make_gallery_page.py")
    text = maker.PAGE.read_text()
    assert maker.page() == text, "stale: run python docs/make_gallery_page.py"
    configs = [p for p in (ROOT / "configs").rglob("[!_]*.py") if p.parent.name not in maker.OTHERS]
    assert text.count("\n## ") == len(configs) and all(
        f"--config configs/{p.relative_to(ROOT / 'configs')}" in text for p in configs
    )


def test_links_of_the_repository_become_links_of_the_site():
    site_packages()
    hooks = script("docs/site_hooks.py")
    text = "See [a](docs/data.md#text), [b](CONTRIBUTING.md) and [c](setup.py).\n- [d](docs/notebooks/gpt.ipynb)\n"
    expected = "See [a](data.md#text), [b](contributing.md) and c.\n\n- [d](notebooks/gpt.md)\n"
    assert hooks._for_site(text, "README.md", "index.md") == expected
    text = "[a](../../README.md#start), [b](../config.md), [c](collapse.md), [d](https://x.org/a.md), [e](#here)"
    expected = "[a](../index.md#start), [b](../config.md), [c](collapse.md), [d](https://x.org/a.md), [e](#here)"
    assert hooks._for_site(text, "docs/tutorials/sweep.md", "tutorials/sweep.md") == expected


def test_a_setting_has_its_default_and_meaning_in_the_reference():
    site_packages()
    import griffe

    extensions = griffe.load_extensions(str(DOCS / "griffe_settings.py"))
    package = griffe.load("ssljax", search_paths=[str(ROOT)], extensions=extensions)
    key = package["objectives.contrastive.simclr.SimCLR.temperature"]
    assert key.value == "0.1" and key.docstring.value.startswith("temperature of the softmax over similarities")
    shared = package["train.optimizers.Optimizer.learning_rate"]  # its `doc` is a constant of the module
    assert shared.docstring.value.startswith("peak learning rate")


def test_the_site_builds_without_warnings_without_jax_and_without_a_network(tmp_path):
    site_packages()
    code = (
        "import sys; from mkdocs.__main__ import cli\n"
        f"cli(['build', '--strict', '-d', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert 'jax' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        html = page.read_text()
        assert not re.search(r"<(script|img|iframe)[^>]*src=\"(https?:)?//|<link[^>]*stylesheet[^>]*//", html), page
    assert (tmp_path / "search/search_index.json").stat().st_size > 100_000
