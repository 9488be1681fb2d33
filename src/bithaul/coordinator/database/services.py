"""The last result of each background service, for health, dashboard and metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, insert, select

from bithaul.coordinator.database.tables import service_results


@dataclass(frozen=True)
class ServiceResult:
    name: str
    ok: bool
    message: str
    finished_at: float
    seconds: float


def store_result(connection: Connection, result: ServiceResult) -> None:
    connection.execute(delete(service_results).where(service_results.c.name == result.name))
    connection.execute(insert(service_results).values(**asdict(result)))


def list_results(connection: Connection) -> list[ServiceResult]:
    query = select(service_results).order_by(service_results.c.name)
    return [ServiceResult(**row) for row in connection.execute(query).mappings()]
