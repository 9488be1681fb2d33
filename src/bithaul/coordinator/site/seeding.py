"""Seeding: ask for a batch of tasks, see what it would be, do exactly that, take it back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.forms import read_form
from bithaul.coordinator.commands.seed_tasks import seed_tasks, withdraw_seeding
from bithaul.coordinator.queries.actions import newest_action
from bithaul.coordinator.queries.seeding import seeding_preview, seedings_view
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.environment import with_query
from bithaul.coordinator.site.export import export
from bithaul.coordinator.site.frame import Frame
from bithaul.coordinator.site.pages import go
from bithaul.errors import Conflict, InvalidInput

Number = Annotated[int, Path(ge=1, le=10**15)]
SEED = f"{ADMIN_HOME}/tasks/seed"


def seeding_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c

    @router.get(SEED)
    async def seed_page(request: Request, tasks: str = "", examples: str = "", moved: str = "") -> Response:
        def build() -> dict[str, object]:
            view = seedings_view(c)
            asked = bool(tasks or examples) and view.run is not None
            return {
                "view": view,
                "preview": seeding_preview(c, tasks=_whole(tasks), examples=_whole(examples))
                if asked
                else None,
                "asked": {"tasks": tasks, "examples": examples},
                "moved": bool(moved),
            }

        return await frame.show(request, "seed.html", build)

    @router.get(f"{SEED}.{{kind}}")
    async def seedings_file(request: Request, kind: str) -> Response:
        return await frame.data(request, lambda: export([seedings_view(c).rows], name="seedings", kind=kind))

    @router.post(SEED)
    async def seed(request: Request) -> Response:
        """Exactly what was previewed; back to a fresh preview when the queue has moved or it cannot be."""
        session = await frame.visits.admin(request)
        form = await read_form(request)
        tasks, examples = form.get("tasks", ""), form.get("examples", "")
        asked = {"tasks": tasks[:20], "examples": examples[:20]}

        def apply() -> str:
            try:
                seed_tasks(
                    c,
                    tasks=_whole(tasks),
                    examples=_whole(examples),
                    mark=form.get("mark", "")[:64],
                    actor=session.name,
                )
            except InvalidInput:
                return with_query(SEED, asked)  # the preview says why
            except Conflict:
                return with_query(SEED, asked, moved=1)
            return f"{SEED}?did={newest_action(c, session.name)}"

        return go(await run_in_threadpool(apply))

    @router.post(f"{ADMIN_HOME}/tasks/seedings/{{seeding}}/withdraw")
    async def withdraw(request: Request, seeding: Number) -> Response:
        return await frame.act(
            request, lambda session: withdraw_seeding(c, seeding, actor=session.name), back=SEED
        )


def _whole(text: str) -> int:
    """A whole number as typed; 0, which no seeding takes, for everything else."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= 9 else 0
