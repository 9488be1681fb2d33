"""What went wrong, for somebody who is signed in or was a moment ago: with the pages to go on to.

Strangers get the bare page of `Pages.problem`, and so does everybody when it is the coordinator that failed.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.csrf import CODE, SAFE_METHODS
from bithaul.coordinator.site.environment import NAVIGATION
from bithaul.coordinator.site.frame import Frame
from bithaul.coordinator.site.pages import HOME, Personal, go, title_of

_STALE = "You have signed in again since this page was loaded; nothing was changed. Load it and do it again."


def trouble_of(frame: Frame) -> Personal:
    async def told(request: Request, status: int, detail: str, code: str) -> Response | None:
        visits = frame.visits
        session = await visits.session(request, active=False)
        page = "" if request.method in SAFE_METHODS else visits.page_of_form(request)
        if session is None and code == CODE and page:
            return go(visits.signed_out(page))
        if session is None or session.admin_since is None or session.must_change:
            return None
        section, address, words = _section(request.scope["path"])
        values = {
            "status": status,
            "layout": "shell.html",
            "section": section,
            "title": title_of(status),
            "message": _STALE if code == CODE and page else detail,
            "link": page or address,
            "link_text": "Back to the page" if page else words,
            "request_id": "",
            "here": address,  # what a refresh asks for: never what went wrong
        }
        return await run_in_threadpool(frame.render, request, session, "message.html", values)

    return told


def _section(path: str) -> tuple[str, str, str]:
    """Of the page at `path`: its key in the navigation, the address of its list, words that lead there."""
    for key, address, word, _ in reversed(NAVIGATION):  # the dashboard's address begins all others
        if path == address or path.startswith((f"{address}/", f"{address}.")):
            return key, address, "Add a machine" if key == "install" else f"To the {word.lower()}"
    if path.startswith(HOME):
        return "", HOME, "To your account"
    return "", "/admin", "To the dashboard"
