"""The book's own Sphinx extension.

It points myst-nb at each page's own execution cache, writes the measured cost under each page's title,
refuses a picture without alternative text, and drops scripts that other extensions add twice. Its
parts fold cells, number figures and tables, and keep the ledger of equations.
A refusal is a warning, and the book is built with warnings as errors.
"""

import hashlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import diffbook_cache
import diffbook_fold
import diffbook_ledger
import diffbook_numbers
from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector, SphinxEnvType
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)


class Pictures(HTMLParser):
    """Collects what is wrong with the pictures and identifiers of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.identifiers: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        if tag == "img":
            self._require(
                attributes.get("alt", ""), attributes.get("src", ""), "an image"
            )
        if tag == "svg" and attributes.get("role") == "img":
            self._require(attributes.get("aria-label", ""), "", "an svg")
        identifier = attributes.get("id", "")
        if identifier.startswith("moving-"):
            if identifier in self.identifiers:
                self.faults.append(f"two moving figures are named {identifier[7:]!r}")
            self.identifiers.add(identifier)

    def _require(self, text: str, source: str, what: str) -> None:
        """A text is missing too when it is only the file's name, which is docutils' default."""
        if not text.strip() or (source and Path(source).name in text):
            self.faults.append(
                f"{what} has no alternative text: {(source or text)[:80]!r}"
            )


def faults(page: str) -> list[str]:
    """What is wrong with the pictures of a page of HTML, one line each."""
    parser = Pictures()
    parser.feed(page)
    return parser.faults


def prepare(app: Sphinx, config: Config) -> None:
    """Sets what the kernels inherit, should a page have to run during the build."""
    diffbook_cache.prepare()


def choose_cache(app: Sphinx, docname: str, source: list[str]) -> None:
    """Gives myst-nb the cache of the page that it is about to read."""
    if (place := cache_of(app.env, docname)) is not None:
        env = cast(SphinxEnvType, app.env)
        env.mystnb_config = env.mystnb_config.copy(execution_cache_path=place)
        NbMetadataCollector.set_doc_data(env, docname, "cache", place)


def outdated(
    app: Sphinx,
    env: BuildEnvironment,
    added: set[str],
    changed: set[str],
    removed: set[str],
) -> list[str]:
    """The pages that were read from another cache than their present one."""
    data = NbMetadataCollector.get_doc_data(cast(SphinxEnvType, env))
    known = env.found_docs - added - changed
    return [
        name
        for name in known
        if data.get(name, {}).get("cache") != cache_of(env, name)
    ]


def cache_of(env: BuildEnvironment, docname: str) -> str | None:
    """The present cache of a page; None if it is no notebook."""
    page = Path(env.doc2path(docname))
    if page.suffix != ".ipynb":
        return None
    return str(diffbook_cache.folder(page, Path(env.srcdir)))


def add_cost(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Writes what the page costs to run, as measured in this book's build, under its title."""
    run = NbMetadataCollector.get_exec_data(app.env, docname) or {}
    seconds = run.get("runtime")
    if seconds is None:
        text = "Nothing to run on this page."
    else:
        shown = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
        text = (
            f"Running this page took {shown} on one CPU core when the book was built."
        )
    section = next(doctree.findall(nodes.section), None)
    if section is not None:
        section.insert(1, nodes.paragraph("", text, classes=["diffbook-cost"]))


def check_pictures(
    app: Sphinx,
    pagename: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Refuses pictures without alternative text."""
    for fault in faults(context.get("body", "") if doctree else ""):
        logger.warning(fault, location=pagename)


def drop_repeated_scripts(
    app: Sphinx,
    pagename: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Keeps the first of the scripts that the toggle and thebe extensions add twice."""
    kept: dict[tuple[Any, Any], object] = {}
    for script in context["script_files"]:
        name = (
            getattr(script, "filename", script) or ""
        )  # two spellings of an inline script
        body = getattr(script, "attributes", {}).get("body")
        kept.setdefault((name, body), script)
    context["script_files"] = list(kept.values())


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the hooks, and has every page written again when one of these files changes."""
    parts = sorted(Path(__file__).parent.glob("*.py"))
    source = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
    app.add_config_value("diffbook_pages_source", source, "html", [str])
    for part in (diffbook_fold, diffbook_numbers, diffbook_ledger):
        part.setup(app)
    app.connect("config-inited", prepare)
    app.connect("env-get-outdated", outdated)
    app.connect("source-read", choose_cache)
    app.connect("doctree-resolved", add_cost)
    app.connect("html-page-context", check_pictures)
    app.connect("html-page-context", drop_repeated_scripts, priority=900)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
