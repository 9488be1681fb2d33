"""The two cookies: a session, and a sign-in that has begun. HttpOnly, SameSite=Lax, Path=/.

Under https they are Secure and carry the `__Host-` prefix. Cookies do not separate ports, so the name
carries a short hash of the public URL: two coordinators on one host must not sign each other out.
"""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers
from starlette.responses import Response

from bithaul.coordinator.settings import Settings

_LONGEST = 8 * 1024


class Cookies:
    def __init__(self, settings: Settings) -> None:
        self._https = settings.base_url.startswith("https:")
        prefix = "__Host-" if self._https else ""
        mark = hashlib.sha256(settings.base_url.encode()).hexdigest()[:8]
        self.session = f"{prefix}bithaul-{mark}"
        self.sign_in = f"{prefix}bithaul-signin-{mark}"

    def read(self, headers: Headers, name: str) -> str | None:
        """The value of one of our cookies; None when absent, empty, sent twice or unreadable."""
        values = []
        for header in headers.getlist("cookie"):
            if len(header) > _LONGEST:
                return None
            pairs = [part.strip().partition("=") for part in header.split(";")]
            values += [value for key, _, value in pairs if key == name]
        return values[0] if len(values) == 1 and values[0] else None

    def has(self, headers: Headers) -> bool:
        """Whether the request carries one of our cookies, readable or not."""
        text = ";".join(headers.getlist("cookie"))
        return f"{self.session}=" in text or f"{self.sign_in}=" in text

    def put(self, response: Response, name: str, value: str) -> None:
        response.headers.append("set-cookie", f"{name}={value}{self._attributes()}")

    def drop(self, response: Response, name: str) -> None:
        response.headers.append("set-cookie", f"{name}={self._attributes()}; Max-Age=0")

    def _attributes(self) -> str:
        return "; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if self._https else "")
