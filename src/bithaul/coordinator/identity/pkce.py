"""Proof Key for Code Exchange (RFC 7636): S256 only, demanded where the code is asked for (A5, A6)."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

from authlib.oauth2.rfc6749.errors import InvalidGrantError, InvalidRequestError

from bithaul.coordinator.identity.secretfiles import urlsafe

_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")


def challenge_of(verifier: str) -> str:
    return urlsafe(hashlib.sha256(verifier.encode("ascii")).digest())


def read_challenge(fields: Mapping[str, str], *, required: bool) -> str | None:
    """The challenge of an authorization request, or `InvalidRequestError`; None where none is required."""
    challenge, method = fields.get("code_challenge"), fields.get("code_challenge_method")
    if challenge is None and method is None and not required:
        return None
    if method != "S256":
        raise InvalidRequestError("PKCE is required: send code_challenge_method=S256.")
    if challenge is None or not _CHALLENGE.fullmatch(challenge):
        raise InvalidRequestError("The code_challenge is missing or not valid.")
    return challenge


def check_verifier(verifier: str | None, *, challenge: str | None) -> None:
    """Raises when a token request does not prove the challenge, or proves one that was not announced."""
    if challenge is None:
        if verifier is not None:
            raise InvalidGrantError("The authorization request had no code_challenge.")
        return
    if verifier is None or not _VERIFIER.fullmatch(verifier):
        raise InvalidGrantError("The code_verifier is missing or not valid.")
    if not hmac.compare_digest(challenge_of(verifier), challenge):
        raise InvalidGrantError("The code_verifier does not match.")
