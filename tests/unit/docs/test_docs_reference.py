"""The reference pages say what the program does: an option, setting, route or code that is missing fails."""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import typer
from pydantic_core import PydanticUndefined

import bithaul.coordinator.server  # noqa: F401 - defines errors
from bithaul.cli.main import EXIT_PIPE_CLOSED, EXIT_STOPPED, VERBS, build_app
from bithaul.coordinator.api import problems  # noqa: F401 - defines errors
from bithaul.coordinator.api.metrics import HttpMetrics
from bithaul.coordinator.app import create_api
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.settings import Settings
from bithaul.errors import BithaulError
from bithaul.exchange.codecs import CODECS, decode
from bithaul.exchange.frame import MAX_HEADER
from bithaul.exchange.messages import ReportHeader, Verdict
from bithaul.exchange.weights import WEIGHT_FORMATS, read_weights
from bithaul.model.config import PRESETS, ModelConfig, load_config
from bithaul.model.layout import layout_of
from bithaul.training.recipe import TrainingRecipe

CODE = re.compile(r"`([^`]+)`")
SOURCE = Path(__file__).parents[3] / "src" / "bithaul"


def spoken(command, path: tuple[str, ...]) -> Iterator[tuple[str, dict[str, object]]]:
    """(`bithaul keys create`, {option or argument: default}) of a click command and all below it."""
    found: dict[str, object] = {}
    for parameter in command.params:
        name = parameter.opts[0]
        if not name.startswith("-"):
            name = parameter.metavar or name.upper()
        found[name] = "required" if parameter.required else parameter.default
    yield " ".join(path), found
    for name, below in getattr(command, "commands", {}).items():
        yield from spoken(below, (*path, name))


def program() -> dict[str, dict[str, object]]:
    root = typer.main.get_command(build_app(None))
    found = {"bithaul": {p.opts[0]: p.default for p in root.params}}
    for verb in VERBS:
        root = typer.main.get_command(build_app(verb.name))
        found |= dict(spoken(root.commands[verb.name], ("bithaul", verb.name)))
    return found


def test_cli_page_has_every_verb_option_and_default(pages) -> None:
    """Catches: a new option nobody described, a renamed one, a default that moved."""
    page = pages.text("docs/reference/cli.md")
    tables = pages.tables("docs/reference/cli.md")
    told = program()
    headings = set(re.findall(r"^#+ `(bithaul[^`]*)`$", page, re.MULTILINE))
    assert headings == set(told)
    for verb, options in told.items():
        rows = {CODE.findall(row[0])[0]: row for row in tables.get(verb, [])}
        assert rows.keys() == options.keys(), verb
        for name, default in options.items():
            _, written, meaning = rows[name]
            assert meaning, f"{verb} {name}"
            if default is False:
                assert written == "off", f"{verb} {name}"
            elif default == "required":
                assert written == "required", f"{verb} {name}"
            elif default is None or default == "":
                assert written not in ("", "required"), f"{verb} {name}: say what happens without it"
            else:
                assert written == f"`{default}`", f"{verb} {name}"


def test_settings_page_has_every_setting(pages) -> None:
    """Catches: an undocumented setting, a default that moved."""
    rows = {CODE.findall(row[0])[0]: row for row in pages.tables("docs/reference/settings.md")["Settings"]}
    assert rows.keys() == Settings.model_fields.keys()
    for name, field in Settings.model_fields.items():
        default = field.default
        wanted = "required" if default is PydanticUndefined else "empty" if default == "" else f"`{default}`"
        assert rows[name][1] == wanted, name
        assert rows[name][2], name


def test_model_page_has_every_field_of_a_recipe(pages) -> None:
    """Catches: a field that `--recipe` takes and nobody described."""
    rows = pages.tables("docs/explanation/model.md")["The recipe"]
    told = [name for row in rows for name in CODE.findall(row[0])]
    assert sorted(told) == sorted(TrainingRecipe.model_fields)


def test_rest_page_has_every_route_and_who_may_use_it(pages, tmp_path) -> None:
    """Catches: an undocumented route, a route behind another scope than the page says."""
    with closing(open_coordinator(Settings(directory=tmp_path))) as c:
        paths = create_api(c, HttpMetrics()).openapi()["paths"]
    served = {}
    for path, operations in paths.items():
        for method, operation in operations.items():
            scopes = [scope for entry in operation.get("security", []) for scope in entry["oauth2"]]
            served[f"{method.upper()} {path}"] = scopes[0].removeprefix("bithaul.") if scopes else "public"
    rows = pages.tables("docs/reference/rest.md")["REST API"]
    assert {CODE.findall(row[0])[0]: row[1] for row in rows} == served


def errors(base: type[BithaulError] = BithaulError) -> Iterator[type[BithaulError]]:
    """All error classes of the program."""
    yield base
    for child in base.__subclasses__():
        if child.__module__.startswith("bithaul."):
            yield from errors(child)


def written_codes(*folders: str) -> set[str]:
    """Every `code="..."` in the source of these rooms."""
    found = set()
    for folder in folders:
        for file in (SOURCE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.keyword)
                    and node.arg == "code"
                    and isinstance(node.value, ast.Constant)
                ):
                    found.add(str(node.value.value))
    return found


def test_rest_page_has_every_error_code(pages) -> None:
    """Catches: a code a client can get and nobody explained, a status that moved."""
    rows = pages.tables("docs/reference/rest.md")["Errors"]
    told = {code: row[1].split(", ") for row in rows for code in CODE.findall(row[0])}
    cli_only = {"error", "port_in_use", "refused"}
    served = [e for e in errors() if not e.__module__.startswith("bithaul.worker") and e.code not in cli_only]
    for error in served:
        assert str(error.http_status) in told.get(error.code, []), error.code
    not_served = {"merge", "key_too_young"}  # the merger's and `bithaul keys`' own
    assert written_codes("coordinator") - not_served <= told.keys()
    stale = told.keys() - written_codes("coordinator") - {e.code for e in served}
    assert stale <= {"method_not_allowed", "unsupported_media_type"}


def test_rest_page_has_every_verdict_and_gate(pages) -> None:
    """Catches: a verdict or a reason of refusal that the page does not name."""
    rows = pages.tables("docs/reference/rest.md")["Messages"]
    assert [CODE.findall(row[0])[0] for row in rows] == [verdict.value for verdict in Verdict]
    gates = (SOURCE / "coordinator" / "commands" / "gates.py").read_text(encoding="utf-8")
    codes = set(re.findall(r'(?:refused|Refused)\(\s*"([a-z_]+)"', gates))
    assert "norm" in codes
    assert codes <= set(CODE.findall(pages.text("docs/reference/rest.md")))


def test_exit_codes_page_has_every_code(pages) -> None:
    """Catches: an exit code or an error name that is missing or in the wrong row."""
    rows = {
        int(row[0]): CODE.findall(row[1])
        for row in pages.tables("docs/reference/exit-codes.md")["Exit codes"]
    }
    wanted: dict[int, set[str]] = {}
    for error in errors():
        if ".coordinator.api" not in error.__module__ and not error.__module__.startswith("bithaul.worker"):
            wanted.setdefault(error.exit_code, set()).add(error.code)
    wanted[6] -= {"invalid_token", "wrong_password", "passwords_off"}  # seen over HTTP only
    wanted[1].discard("throttled")
    assert rows.keys() == wanted.keys() | {0, EXIT_STOPPED, EXIT_PIPE_CLOSED}
    assert {code: set(rows[code]) for code in wanted} == wanted


def test_model_page_has_the_presets(pages) -> None:
    """Catches: a dimension or a parameter count on the page that is not the program's."""
    rows = {row[0]: row[1:] for row in pages.tables("docs/explanation/model.md")["The model"]}
    assert rows.keys() == PRESETS.keys()
    for name, row in rows.items():
        c = load_config(name, vocab_size=5174)
        figures = [c.hidden_size, c.intermediate_size, c.num_heads, c.num_layers, c.context_length]
        assert [int(cell.replace(",", "")) for cell in row] == [*figures, layout_of(c).size]


TINY = ModelConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, context_length=8
)


def payload(codec: str) -> bytes:
    """A payload of ones, written by hand as docs/reference/wire-formats.md describes it."""
    layout = layout_of(TINY)
    p, blocks = layout.size, len(layout.tensors)  # no tensor is as large as a block
    if codec == "fp32-v1":
        return b"BGF4" + struct.pack("<I", p) + struct.pack("<f", 1) * p + struct.pack("<f", 0) * p
    if codec == "int8-ef-v1":
        return struct.pack("<IIf", 0x46454742, p, 0.5) + struct.pack("<b", 2) * p
    if codec == "bf16-v1":
        return b"BGBF" + struct.pack("<I", p) + b"\x80\x3f" * p
    counts = struct.pack("<II", p, blocks)
    if codec == "int4-block-v1":
        return b"BGB4" + counts + struct.pack("<e", 0.5) * blocks + b"\x22" * (p // 2)
    if codec == "topk-2bit-v1":  # at most 64 values in a tensor, so one is kept: place 0, lower level
        return b"BGK2" + counts + struct.pack("<2e", 1, 0) * blocks + b"\0\0" * blocks
    return b"BGB8" + counts + struct.pack("<e", 0.5) * blocks + struct.pack("<b", 2) * p


@pytest.mark.parametrize("name", list(CODECS))
def test_payloads_are_as_described(pages, name) -> None:
    """Catches: a format that changed under its name and its page."""
    assert f"### `{name}`" in pages.text("docs/reference/wire-formats.md")
    layout, kept = layout_of(TINY), np.ones(layout_of(TINY).size, np.float32)
    if name == "topk-2bit-v1":
        kept[:] = 0.0
        kept[[t.offset for t in layout.tensors]] = 1.0
    assert np.array_equal(decode(CODECS[name], payload(name), layout), kept)


def test_weights_are_as_described(pages) -> None:
    """Catches: weights with another head than the page's."""
    page = pages.text("docs/reference/wire-formats.md")
    assert all(f"## Weights: `{name}`" in page for name in WEIGHT_FORMATS)
    whole = struct.pack("<IqI3f", 0x54475742, 7, 3, 1, 2, -3)
    half = struct.pack("<IqI3H", 0x48475742, 7, 3, 0x3F80, 0x4000, 0xC040)
    assert (whole[:4], half[:4]) == (b"BWGT", b"BWGH")
    for data in (whole, half):
        weights = read_weights(data, expected_count=3)
        assert (weights.version, weights.vector.tolist()) == (7, [1, 2, -3])


def test_frame_and_codes_are_described(pages) -> None:
    """Catches: a header field or a code of broken bytes that the page does not name."""
    page = pages.text("docs/reference/wire-formats.md")
    named = set(CODE.findall(page))
    assert ReportHeader.model_fields.keys() <= named
    assert written_codes("exchange") <= named
    assert f"at most {MAX_HEADER:,}" in page
