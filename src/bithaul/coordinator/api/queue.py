"""The queue by API (scope `bithaul.admin`): seed tasks, take a seeding back, kick what is stuck."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from bithaul.coordinator.api.guard import AdminRoute, Caller
from bithaul.coordinator.commands.kick import Kicked, kick_stuck, kick_task
from bithaul.coordinator.commands.seed_tasks import Seeded, Withdrawn, seed_tasks, withdraw_seeding
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.seeding import SeedingPreview, SeedingsView, seeding_preview, seedings_view
from bithaul.coordinator.queries.stuck import StuckTasksView, stuck_tasks

Number = Annotated[int, Path(ge=1, le=10**15)]
Wished = Annotated[int, Query(ge=1, le=10**9)]  # what can be done of it, the preview says in words


class SeedRequest(BaseModel):
    """`mark` is a preview's: with it this very seeding is made, or none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: Annotated[int, Field(ge=1, le=10**9)]
    examples: Annotated[int, Field(ge=1, le=10**9)]
    mark: Annotated[str | None, Field(max_length=64)] = None


def queue_routes(c: Coordinator) -> APIRouter:
    router = APIRouter(route_class=AdminRoute, tags=["admin"], prefix="/api/tasks")

    @router.get("/seedings")
    def seedings() -> SeedingsView:
        """What was seeded, and what became of it."""
        return seedings_view(c)

    @router.get("/seedings/preview")
    def preview(tasks: Wished, examples: Wished) -> SeedingPreview:
        """What a seeding would be, and whether it can be done; changes nothing."""
        return seeding_preview(c, tasks=tasks, examples=examples)

    @router.post("/seedings", status_code=201)
    def seed(caller: Caller, message: SeedRequest) -> Seeded:
        """Cut tasks ahead of demand; workers take them first."""
        return seed_tasks(
            c,
            tasks=message.tasks,
            examples=message.examples,
            mark=message.mark,
            actor=caller.client_id,
        )

    @router.post("/seedings/{seeding}/withdraw")
    def withdraw(caller: Caller, seeding: Number) -> Withdrawn:
        """Give the positions of its tasks back that nobody has taken yet."""
        return withdraw_seeding(c, seeding, actor=caller.client_id)

    @router.get("/stuck")
    def stuck() -> StuckTasksView:
        """Leased tasks that get nowhere, and why."""
        return stuck_tasks(c)

    @router.post("/stuck/kick")
    def kick_all(caller: Caller) -> Kicked:
        """Revoke the leases of all that are stuck."""
        return kick_stuck(c, actor=caller.client_id)

    @router.post("/{task}/kick")
    def kick(caller: Caller, task: Number) -> Kicked:
        """Revoke the lease of a stuck task."""
        return kick_task(c, task, actor=caller.client_id)

    return router
