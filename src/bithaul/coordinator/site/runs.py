"""The run and its weight versions: facts, table, a page each, download, pin, and a sentence to try."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.blobs import answer_blob
from bithaul.coordinator.api.forms import read_form
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.commands.steer import pause_run, pin_version, resume_run
from bithaul.coordinator.commands.try_model import LONGEST, Trial
from bithaul.coordinator.queries.blobs import weights_blob
from bithaul.coordinator.queries.runpage import RunPageView, run_page, version_page
from bithaul.coordinator.queries.ternary import TernaryView, ternary
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.export import NEWEST, PAGE, Rows, export, in_pages
from bithaul.coordinator.site.frame import Frame
from bithaul.errors import BithaulError

Number = Annotated[int, Path(ge=1, le=10**15)]
Key = Annotated[int | None, Query(ge=0, le=10**15)]
RUNS = f"{ADMIN_HOME}/runs"
PART = "bithaul-part"  # an answer with this header is a part of the page, and its script shows it there
SCRIPTED = "hx-request"  # the header by which the pages' script says that it asks for a part


def run_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c
    trial = Trial(c)
    pictures = Pictures(partial(ternary, c))

    @router.get(RUNS)
    async def runs(request: Request, before: Key = None, kept: str = "") -> Response:
        def build() -> dict[str, object]:
            view = run_page(c, before=before, kept=bool(kept))
            return _page(view, kept=kept, paged=before is not None)

        return await frame.show(request, "runs.html", build)

    @router.get(f"{RUNS}.{{kind}}")
    async def versions_file(request: Request, kind: str, kept: str = "") -> Response:
        def read(before: int) -> tuple[Rows, int | None]:
            view = run_page(c, before=before, kept=bool(kept), count=PAGE)
            return view.rows, view.older

        return await frame.data(request, lambda: export(in_pages(read, NEWEST), name="versions", kind=kind))

    @router.post(f"{RUNS}/try")
    async def ask(request: Request) -> Response:
        """The answer as a part of the page for its script, as a whole page for a browser without one."""
        session = await frame.visits.admin(request)
        sentence = (await read_form(request)).get("sentence", "")
        found: dict[str, object] = {"answer": None, "trouble": "", "status": 200}
        try:
            found["answer"] = await run_in_threadpool(trial.ask, sentence)
        except BithaulError as error:
            found |= {"trouble": error.message, "status": error.http_status}
        if SCRIPTED in request.headers:
            part = frame.pages.show("answer.html", **found)  # type: ignore[arg-type]
            part.headers[PART] = "answer"
            return part

        def build() -> Response:
            values = _page(run_page(c), tried=True, sentence=sentence[:LONGEST]) | found | {"here": RUNS}
            return frame.render(request, session, "runs.html", values)

        return await run_in_threadpool(build)

    @router.post(f"{RUNS}/pause")
    async def pause(request: Request) -> Response:
        return await frame.act(request, lambda session: pause_run(c, actor=session.name), back=RUNS)

    @router.post(f"{RUNS}/resume")
    async def resume(request: Request) -> Response:
        return await frame.act(request, lambda session: resume_run(c, actor=session.name), back=RUNS)

    @router.get(f"{RUNS}/{{version}}")
    async def version_details(request: Request, version: Number) -> Response:
        def build() -> dict[str, object]:
            view = version_page(c, version)
            return {"view": view, "ternary": pictures.of(version) if view.version.kept else None}

        return await frame.show(request, "version.html", build)

    @router.get(f"{RUNS}/{{version}}/workers.{{kind}}")
    async def version_workers(request: Request, version: Number, kind: str) -> Response:
        def build() -> Response:
            rows = version_page(c, version).contributions
            return export([rows], name=f"version-{version}-workers", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{RUNS}/{{version}}/weights")
    async def download(request: Request, version: Number) -> Response:
        await frame.visits.admin(request)
        answer = await answer_blob(request, lambda: weights_blob(c, version))
        answer.headers["content-disposition"] = f'attachment; filename="weights-{version}.bgwt"'
        return answer

    @router.post(f"{RUNS}/{{version}}/pin")
    async def pin(request: Request, version: Number) -> Response:
        return await frame.act(
            request, lambda s: pin_version(c, version, on=True, actor=s.name), back=f"{RUNS}/{version}"
        )

    @router.post(f"{RUNS}/{{version}}/unpin")
    async def unpin(request: Request, version: Number) -> Response:
        return await frame.act(
            request, lambda s: pin_version(c, version, on=False, actor=s.name), back=f"{RUNS}/{version}"
        )

    @router.post(f"{RUNS}/{{version}}/rollback")
    async def rollback(request: Request, version: Number) -> Response:
        return await frame.act(request, lambda s: roll_back(c, version, actor=s.name), back=RUNS)


def _page(
    view: RunPageView, *, kept: str = "", paged: bool = False, tried: bool = False, sentence: str = ""
) -> dict[str, object]:
    """Values of the page of runs; `tried`: it shows what came of `sentence`."""
    values = {"view": view, "asked": {"kept": kept}, "paged": paged, "longest": LONGEST}
    return values | {"tried": tried, "sentence": sentence, "answer": None, "trouble": ""}


class Pictures:
    """Pictures of the last few versions that somebody looked at.

    Reading weights takes a while: who asks for one that is being read waits for it, and nobody else does.
    """

    MOST = 8

    def __init__(self, read: Callable[[int], TernaryView]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._known: OrderedDict[int, Future[TernaryView]] = OrderedDict()

    def of(self, version: int) -> TernaryView:
        with self._lock:
            known = self._known.get(version)
            found = known or Future()
            self._known[version] = found
            self._known.move_to_end(version)
            while len(self._known) > self.MOST:
                self._known.popitem(last=False)
        if known is None:
            self._fill(version, found)
        return found.result()

    def _fill(self, version: int, found: Future[TernaryView]) -> None:
        try:
            found.set_result(self._read(version))
        except BaseException as error:
            with self._lock:
                if self._known.get(version) is found:  # the next one tries again
                    del self._known[version]
            found.set_exception(error)
            raise
