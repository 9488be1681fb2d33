"""Build hook: every wheel and editable install brings the admin site's scripts; see frontend/vendor.py."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SiteFiles(BuildHookInterface):  # type: ignore[type-arg]
    def dependencies(self) -> list[str]:
        requirements: list[str] = self._vendor()["build_requirements"]()
        return requirements

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        self._vendor()["install"]()

    def _vendor(self) -> dict[str, Any]:
        return runpy.run_path(str(Path(self.root) / "frontend" / "vendor.py"))
