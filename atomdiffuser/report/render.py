"""Jinja2 environment of the pages: autoescaping on, undefined names are errors, style and scripts inlined."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup, escape

from atomdiffuser.report import formatting
from atomdiffuser.report.formatting import known
from atomdiffuser.report.payload import to_json


def render(template: str, **context: Any) -> str:
    """One page as text."""
    return _environment().get_template(template).render(**context)


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("atomdiffuser.report", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def asset(name: str) -> Markup:
        # the package's own style sheets and scripts: trusted text, nothing of the user's in it
        return Markup(loader.get_source(environment, name)[0])

    environment.globals.update(asset=asset, known=known)
    environment.filters.update(
        symbols=symbols,
        breakable=breakable,
        sentence=sentence,
        number=formatting.number,
        integer=formatting.integer,
        fixed=formatting.fixed,
        exact=exact,
        p_value=formatting.p_value,
        json=lambda v: Markup(to_json(v)),
    )
    return environment


def symbols(text: str) -> Markup:
    """Text with the symbols F_c, t_c and n_c set with a subscript."""
    return Markup(re.sub(r"\b([Ftn])_c\b", r"\1<sub>c</sub>", str(escape(text))))


def breakable(name: str) -> Markup:
    """A name that a line may break after its underscores, dashes and dots, and not within its words.

    Examples
    --------
    >>> breakable("STO_200kV-02")
    Markup('STO_<wbr>200kV-<wbr>02')
    """
    return Markup("<wbr>").join(re.split(r"(?<=\w[_.–-])(?=\w)", name))


def sentence(text: str) -> Markup:
    """The verdict with what stands in parentheses set back, and no line break between a number and its unit."""
    marked = re.sub(r"(\([^()]*\))", r'<span class="aside">\1</span>', str(symbols(text)))
    return Markup(re.sub(r"(?<=[\d)−]) (?=[×%]|10|nm|px|e⁻|s\b|min\b)|(?<=×) ", "\u00a0", marked))


def exact(value: Any) -> str:
    """A table's value at full precision, for sorting, download and tests."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else ""
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return str(value)
