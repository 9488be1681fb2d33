"""Jinja2 for all pages: escaping on, an unknown name is an error, the filters of `formats`,
and no letter that acts instead of being seen."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from bithaul import __version__
from bithaul.coordinator.site import formats
from bithaul.coordinator.site.assets import Assets
from bithaul.visible import visible

NAVIGATION = (  # key, address, word, second key of its shortcut `g ...`
    ("dashboard", "/admin", "Dashboard", "d"),
    ("workers", "/admin/workers", "Workers", "w"),
    ("tasks", "/admin/tasks", "Tasks", "t"),
    ("runs", "/admin/runs", "Runs", "r"),
    ("logs", "/admin/logs", "Logs", "l"),
    ("keys", "/admin/keys", "Keys", "k"),
    ("install", "/admin/install", "Install", "i"),
)


def make_environment(assets: Assets) -> Environment:
    environment = Environment(
        loader=PackageLoader("bithaul.coordinator.site"),
        autoescape=True,
        auto_reload=False,  # new files under a running coordinator would meet its old code
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formats.FILTERS)
    environment.globals.update(
        asset=assets.address, navigation=NAVIGATION, software=__version__, with_query=with_query
    )
    return environment


def _shown(value: object) -> object:
    """What a page shows holds no letter that acts, wherever it came from. Markup is our own."""
    return visible(value, keep="\n\t") if type(value) is str else value


def with_query(path: str, query: Mapping[str, object], **changes: object) -> str:
    """`path` with the query changed; None and the empty text leave a name out."""
    wanted = {**query, **changes}
    pairs = [
        (name, str(value)) for name, value in wanted.items() if value not in (None, "") and name != "did"
    ]
    return f"{path}?{urlencode(pairs)}" if pairs else path
