"""The last result of each background service, for health, dashboard and metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, select

from bithaul.coordinator.database.prepared import insert_row, update_row
from bithaul.coordinator.database.tables import service_results


@dataclass(frozen=True)
class ServiceResult:
    name: str
    ok: bool
    message: str
    finished_at: float
    seconds: float


def store_result(connection: Connection, result: ServiceResult) -> None:
    values = asdict(result)
    if not update_row(connection, service_results, {"name": values.pop("name")}, values):
        insert_row(connection, service_results, asdict(result))


def list_results(connection: Connection) -> list[ServiceResult]:
    query = select(service_results).order_by(service_results.c.name)
    return [ServiceResult(**row) for row in connection.execute(query).mappings()]
