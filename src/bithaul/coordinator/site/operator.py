"""All pages of an operator. Each family is a function that adds its routes; none is in the API's document."""

from __future__ import annotations

from fastapi import APIRouter

from bithaul.coordinator.site.dashboard import dashboard_pages
from bithaul.coordinator.site.frame import Frame
from bithaul.coordinator.site.keys import key_pages
from bithaul.coordinator.site.logs import log_pages
from bithaul.coordinator.site.runs import run_pages
from bithaul.coordinator.site.seeding import seeding_pages
from bithaul.coordinator.site.tasks import task_pages
from bithaul.coordinator.site.workers import worker_pages


def operator_pages(router: APIRouter, frame: Frame) -> None:
    families = (
        dashboard_pages,
        worker_pages,
        seeding_pages,  # before the tasks: its address looks like a task's
        task_pages,
        run_pages,
        log_pages,
        key_pages,
    )
    for add in families:
        add(router, frame)
