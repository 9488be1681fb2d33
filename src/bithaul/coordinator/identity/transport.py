"""Which public URLs a coordinator may announce: secrets must not cross a network in clear unasked."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from bithaul.errors import InvalidConfig


def check_public_url(url: str, *, allow_insecure_lan: bool) -> str | None:
    """None: fine. A string: allowed, with this warning. Raises `InvalidConfig` when refused.

    https is fine; http is fine on loopback, needs the switch on a private address or .local name, and is
    refused anywhere else.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidConfig(f"The public URL {url!r} is not a URL.") from error
    if parts.scheme not in {"http", "https"} or not host or parts.username or parts.query or parts.fragment:
        raise InvalidConfig(f"The public URL {url!r} must look like https://host[:port].")
    if parts.path:
        raise InvalidConfig(
            f"The public URL {url!r} must not have a path; give the coordinator its own host name."
        )
    if parts.scheme == "https" or is_loopback(host):
        return None
    if not _is_private(host):
        raise InvalidConfig(
            f"The public URL {url} is plain http outside of a private network, where anyone can read "
            "secrets; set an https public_url (a tunnel or a proxy gives one)."
        )
    if not allow_insecure_lan:
        raise InvalidConfig(
            f"The public URL {url} is plain http: anyone on that network can read secrets and change "
            "weights; set an https public_url, or accept it with --allow-insecure-lan."
        )
    return f"{url} is plain http: anyone on this network can read secrets and change weights in flight."


def is_loopback(host: str) -> bool:
    """Whether this host name or address is this machine."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_safe_url(url: object) -> bool:
    """https, or http on this very machine; no name, password or fragment in it."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    return safe and bool(host) and parts.username is None and not parts.fragment


def _is_private(host: str) -> bool:
    address = _address(host)
    if address is None:
        return host.endswith(".local")
    return address.is_private and not address.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_plain_http(url: str) -> bool:
    """Whether pages under this public URL cross a network unencrypted."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")
