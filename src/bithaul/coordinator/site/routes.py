"""All pages of the site. Each family is a function that adds its routes; none is in the API document."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.peer import Peers
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.provider import Identity
from bithaul.coordinator.site.account import account_pages
from bithaul.coordinator.site.admin import admin_pages
from bithaul.coordinator.site.openid import openid_pages
from bithaul.coordinator.site.pages import Pages
from bithaul.coordinator.site.signin import sign_in_pages
from bithaul.coordinator.site.visits import Visits

_STATIC = {"site.css": "text/css; charset=utf-8"}


def site_routes(c: Coordinator, identity: Identity, cookies: Cookies, peers: Peers) -> APIRouter:
    pages = Pages(c.settings)
    visits = Visits(c, identity, cookies, peers)
    router = APIRouter(route_class=pages.route_class(), include_in_schema=False)
    sign_in_pages(router, c, identity, cookies, pages, visits)
    account_pages(router, c, identity, cookies, pages, visits)
    openid_pages(router, identity, cookies, pages, visits)
    admin_pages(router, c, identity, cookies, pages, visits)
    for name, media_type in _STATIC.items():
        content = files("bithaul.coordinator.site").joinpath("static", name).read_bytes()
        _add_static(router, name, content, media_type)
    return router


def _add_static(router: APIRouter, name: str, content: bytes, media_type: str) -> None:
    @router.get(f"/static/{name}")
    def static() -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "public, max-age=300"})
