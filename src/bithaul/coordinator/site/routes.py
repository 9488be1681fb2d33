"""All pages of the site. Each family is a function that adds its routes; none is in the API document."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.peer import Peers
from bithaul.coordinator.api.problems import wants_page
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.provider import Identity
from bithaul.coordinator.site.account import account_pages
from bithaul.coordinator.site.admin import ADMIN_HOME, admin_pages
from bithaul.coordinator.site.assets import Assets
from bithaul.coordinator.site.frame import Frame
from bithaul.coordinator.site.openid import openid_pages
from bithaul.coordinator.site.operator import operator_pages
from bithaul.coordinator.site.pages import Pages, go
from bithaul.coordinator.site.signin import sign_in_pages
from bithaul.coordinator.site.trouble import trouble_of
from bithaul.coordinator.site.visits import Visits


def site_routes(
    c: Coordinator, identity: Identity, cookies: Cookies, peers: Peers, assets: Assets, pages: Pages
) -> APIRouter:
    visits = Visits(c, identity, cookies, peers)
    router = APIRouter(route_class=pages.route_class(), include_in_schema=False)
    sign_in_pages(router, c, identity, cookies, pages, visits)
    openid_pages(router, identity, cookies, pages, visits)
    admin_pages(router, c, identity, cookies, pages, visits)
    frame = Frame(c, visits, pages)
    account_pages(router, frame, identity, cookies)
    operator_pages(router, frame)
    pages.visitors = trouble_of(frame)
    assets.serve(router)

    @router.get("/")
    def start(request: Request) -> Response:
        """A person who types the bare address is taken to the site; for machines there is nothing here."""
        if not wants_page(request.headers):
            raise HTTPException(404)
        return go(ADMIN_HOME)

    return router
