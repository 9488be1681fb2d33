"""Parameters of a request, from a form or a query: bounded, strictly decoded, none given twice."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from bithaul.coordinator.api.guard import read_body
from bithaul.coordinator.api.problems import BadRequest, UnsupportedMediaType

FORM = "application/x-www-form-urlencoded"
MAX_FORM_BYTES = 16 * 1024
MAX_FORM_FIELDS = 32


async def read_form(request: Request) -> dict[str, str]:
    """The form of a request: at most 16 KiB, urlencoded, no field twice, nothing in the query."""
    if request.scope["query_string"]:
        raise BadRequest("Send the parameters in the body, not in the address.", code="invalid_request")
    if media_type(request.headers.get("content-type", "")) != FORM:
        raise UnsupportedMediaType(f"Send the parameters as {FORM}.")
    return parse(await read_body(request, limit=MAX_FORM_BYTES))


def read_query(request: Request) -> dict[str, str]:
    """The parameters in the address, under the same rules."""
    query: bytes = request.scope["query_string"]
    return parse(query)


def parse(body: bytes) -> dict[str, str]:
    """Raises `BadRequest`: not ASCII, not UTF-8 after decoding, too many fields, or one of them twice."""
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS
        )
    except ValueError as error:
        raise BadRequest("The form is not valid.", code="invalid_request") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadRequest("A parameter was sent twice.", code="invalid_request")
    return fields


def media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()
