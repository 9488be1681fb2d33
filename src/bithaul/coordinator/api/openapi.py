"""The published OpenAPI document: our problem+json for every error, and which scope each route needs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from bithaul.coordinator.api.problems import MEDIA_TYPE
from bithaul.coordinator.identity.provider import TOKEN_PATH
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE, Problem

SECURITY_SCHEME = "oauth2"
PROBLEM: dict[str, Any] = {
    "description": "A problem with a stable code",
    "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
}
RESPONSES: dict[int | str, dict[str, Any]] = {"default": PROBLEM, 422: PROBLEM}


class Api(FastAPI):
    """FastAPI with the security scheme in its document."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        scopes = {WORKER_SCOPE: "Do work for the run", ADMIN_SCOPE: "Operate the coordinator"}
        flow = {"tokenUrl": TOKEN_PATH, "scopes": scopes}
        components = schema.setdefault("components", {})
        components["securitySchemes"] = {
            SECURITY_SCHEME: {"type": "oauth2", "flows": {"clientCredentials": flow}}
        }
        return schema


def security(scope: str) -> dict[str, Any]:
    """What a guarded operation says of itself."""
    return {"security": [{SECURITY_SCHEME: [scope]}]}
