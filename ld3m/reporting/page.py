"""Web pages of one file: a template of assets/report, with the style and the script that all of them share inside."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from markupsafe import Markup


def page(template: str, content: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """The filled template; whatever is not `Markup` is escaped.

    Args:
        template: its name in assets/report.
        content: its variables; one that is missing is an error. It gets `style` and `script` too.
    """
    assets = jinja2.PackageLoader("ld3m", "assets/report")
    environment = jinja2.Environment(
        loader=assets, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters or {}
    style, script = (Markup(assets.get_source(environment, name)[0]) for name in ("style.css", "script.js"))
    return environment.get_template(template).render(content, style=style, script=script)
