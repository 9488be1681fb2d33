"""Tables of the identity provider: clients, signing keys, denied tokens, failed attempts, audit.

Part of the coordinator's schema (the first migration creates them). No secret is ever stored: clients hold
an HMAC under a pepper that rests in a file, signing keys are encrypted under a key that rests in a file.
Times are seconds since the epoch.
"""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Double, Index, Integer, String, Table, Text, false

from bithaul.coordinator.database.metadata import metadata

clients = Table(
    "clients",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("scope", String(200), nullable=False),
    Column("secret_hash", String(64), nullable=False),  # hex HMAC-SHA-256 under the pepper
    Column("secret_hint", String(16), nullable=False),  # prefix and first characters, for people
    Column("previous_hash", String(64)),  # accepted until previous_until (rotation with a grace)
    Column("previous_until", Double),
    Column("cv", Integer, nullable=False),  # credential version: a token with another one is refused
    Column("disabled", Boolean, nullable=False, server_default=false()),
    Column("created_at", Double, nullable=False),
    Column("rotated_at", Double),
    Column("last_used_at", Double),
    CheckConstraint("cv >= 1", name="cv_positive"),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", String(64), primary_key=True),  # RFC 7638 thumbprint
    Column("state", String(16), nullable=False),
    Column("private_pem", Text, nullable=False),  # PKCS#8, encrypted under the key file
    Column("created_at", Double, nullable=False),
    Column("activated_at", Double),
    Column("retired_at", Double),
    CheckConstraint("state IN ('next', 'active', 'retired')", name="state_known"),
)

denied_tokens = Table(
    "denied_tokens",
    metadata,
    Column("jti", String(64), primary_key=True),
    Column("expires_at", Double, nullable=False, index=True),
)

failed_attempts = Table(
    "failed_attempts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("path", String(32), nullable=False),  # which credential path: "token", later "sign-in", ...
    Column("client_id", String(64), nullable=False),  # as claimed, cut to 64 characters
    Column("address", String(64), nullable=False),
    Column("time", Double, nullable=False, index=True),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time", Double, nullable=False),
    Column("actor", String(64), nullable=False),  # client id, "cli", or "system"
    Column("action", String(64), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("detail", String(400), nullable=False, server_default=""),
    Index("ix_audit_time", "time"),
)
