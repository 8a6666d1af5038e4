"""How the site is built: `make docs` leaves it in build/docs, and any warning is an error."""

from importlib.metadata import version as version_of
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

project, author, copyright = "lorec", "the authors of lorec", "the authors of lorec, Apache-2.0"
release = version = version_of("lorec")
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
exclude_patterns: list[str] = []
html_theme = "furo"
html_title = f"lorec {release}"
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Equations become MathML, which browsers draw by themselves: a page of ours loads nothing from elsewhere."""

    def shown(translator: Any, node: nodes.Node, block: bool) -> None:
        translator.body.append(tex2mathml(node.astext(), as_block=block))
        raise nodes.SkipNode

    app.add_html_math_renderer(
        "mathml",
        (lambda translator, node: shown(translator, node, False), None),
        (lambda translator, node: shown(translator, node, True), None),
    )


html_math_renderer = "mathml"
