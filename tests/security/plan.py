"""Writes docs/openid-plan.md: each module of the OpenID Basic OP plan, what we expect of it, and its test.

Run `make security-matrix`; a test fails when the page is not what this prints, when a module has no test, or
when a test belongs to no module.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "openid-plan.md"
TESTS = Path(__file__).parent / "test_sec_plan.py"

PASS, REVIEW = "pass", "pass, and a person looks at a screenshot"
SCOPE = "not applicable, because the scope is not offered"
STATIC = "not applicable, because it needs dynamic registration, which is not offered"
REQUEST = "not applicable, because request objects are refused and announced so"

# module (without `oidcc-`): what is expected, and the test that carries it where its name is another one.
MODULES: dict[str, tuple[str, str | None]] = {
    "server": (PASS, None),
    "response-type-missing": (REVIEW, None),
    "userinfo-get": (PASS, None),
    "userinfo-post-header": (PASS, None),
    "userinfo-post-body": (PASS, None),
    "ensure-request-without-nonce-succeeds-for-code-flow": (PASS, None),
    "scope-profile": (PASS, None),
    "scope-email": (SCOPE, "scopes_that_are_not_offered"),
    "scope-address": (SCOPE, "scopes_that_are_not_offered"),
    "scope-phone": (SCOPE, "scopes_that_are_not_offered"),
    "scope-all": (SCOPE, "scopes_that_are_not_offered"),
    "ensure-other-scope-order-succeeds": (PASS, None),
    "display-page": (PASS, "display_page_and_popup"),
    "display-popup": (PASS, "display_page_and_popup"),
    "prompt-login": (REVIEW, None),
    "prompt-none-not-logged-in": (PASS, None),
    "prompt-none-logged-in": (PASS, None),
    "max-age-1": (REVIEW, None),
    "max-age-10000": (PASS, None),
    "ensure-request-with-unknown-parameter-succeeds": (PASS, None),
    "id-token-hint": (PASS, None),
    "login-hint": (PASS, None),
    "ui-locales": (PASS, None),
    "claims-locales": (PASS, None),
    "ensure-request-with-acr-values-succeeds": (PASS, None),
    "codereuse": (PASS, None),
    "codereuse-30seconds": (PASS, None),
    "ensure-registered-redirect-uri": (REVIEW, None),
    "ensure-post-request-succeeds": (PASS, None),
    "server-client-secret-post": (PASS, None),
    "unsigned-request-object-supported-correctly-or-rejected-as-unsupported": (REQUEST, None),
    "claims-essential": ("pass, with a warning: the claims parameter is announced as not supported", None),
    "ensure-request-object-with-redirect-uri": (REQUEST, None),
    "refresh-token": ("not applicable, because no refresh token is issued", None),
    "ensure-request-with-valid-pkce-succeeds": (PASS, None),
    "idtoken-signature": (STATIC, "static_clients_only"),
    "idtoken-unsigned": (STATIC, "static_clients_only"),
    "request-uri-unsigned-supported-correctly-or-rejected-as-unsupported": (STATIC, "static_clients_only"),
}


def page() -> str:
    """Raises SystemExit for a module without a test, or a test without a module."""
    body = ast.parse(TESTS.read_text(encoding="utf-8")).body
    tests = {n.name for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_oidcc_")}
    lines = []
    used = set()
    for module, (expected, other) in MODULES.items():
        test = f"test_oidcc_{other or module.replace('-', '_')}"
        if test not in tests:
            raise SystemExit(f"oidcc-{module} has no test {test}")
        used.add(test)
        lines.append(f"| `{module}` | {expected} | `{test}` |")
    if tests - used:
        raise SystemExit(f"Tests of no module: {sorted(tests - used)}")
    passed = sum(expected.startswith("pass") for expected, _ in MODULES.values())
    head = [
        "# The OpenID Basic OP plan",
        "",
        "Written by `make security-matrix`; a test fails when this page is not up to date. The modules of",
        "`oidcc-basic-certification-test-plan`, without their prefix `oidcc-`, ported as tests in",
        "`tests/security/test_sec_plan.py`. bithaul was **not** run under the foundation's own suite and is",
        "not certified. All ported tests send PKCE, which bithaul demands; nearly all modules of the suite",
        "do not, so a run of the suite itself would need clients for which that demand is off.",
        "",
        f"{len(MODULES)} modules: {passed} pass, {len(MODULES) - passed} not applicable.",
        "",
        "| module | expected | test |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} written\n")
