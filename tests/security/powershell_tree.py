"""Reads PowerShell with a grammar that others wrote (tree-sitter-powershell), beside our own `powershell.py`.

The grammar knows `'` and `"`, but not the typographic marks that PowerShell takes for the same characters.
`parse` therefore writes every mark of the specification's classes single-quote-character,
double-quote-character and dash (2.3.5.2, 2.2.1) as the plain one before the grammar sees the text: to
PowerShell that is the same program, and this one table is all that is ours. The grammar ends at NUL, which
no terminal can be given.
"""

from __future__ import annotations

from collections.abc import Iterator

import tree_sitter_powershell
from tree_sitter import Language, Node, Parser

_SAME = str.maketrans(dict.fromkeys("\u2018\u2019\u201a\u201b", "'"))
_SAME |= str.maketrans(dict.fromkeys("\u201c\u201d\u201e", '"'))
_SAME |= str.maketrans(dict.fromkeys("\u2013\u2014\u2015", "-"))
_LITERAL = "verbatim_string_characters"
_PARSER = Parser(Language(tree_sitter_powershell.language()))


class NotPowerShell(Exception):
    """The grammar found an error, or had to add something that is not there."""


def plain(text: str) -> str:
    """The text with the plain one of all marks that PowerShell takes for one another."""
    return text.translate(_SAME)


def parse(text: str) -> Node:
    """The whole tree; raises `NotPowerShell` for a tree with an ERROR or a MISSING node."""
    root = _PARSER.parse(plain(text).encode()).root_node
    if root.has_error:
        raise NotPowerShell(str(root))
    return root


def shape(root: Node) -> list[str]:
    """What kind every node is, signs and key words included, from first to last, with its depth."""
    return [f"{depth} {node.type}" for depth, node in _walk(root)]


def literals(root: Node) -> list[str]:
    """The values of all single-quoted literals, in their order."""
    found = (_text(node) for _, node in _walk(root) if node.type == _LITERAL)
    return [text[1:-1].replace("''", "'") for text in found]


def around(root: Node) -> str:
    """The source without what stands in single-quoted literals, which is left as `''`."""
    source, end, kept = root.text or b"", root.start_byte, b""
    assert root.start_byte == 0
    for _, node in _walk(root):
        if node.type == _LITERAL:
            kept += source[end : node.start_byte] + b"''"
            end = node.end_byte
    return (kept + source[end:]).decode()


def texts(root: Node, kind: str) -> list[str]:
    """The source of every node of this kind, in their order."""
    return [_text(node) for _, node in _walk(root) if node.type == kind]


def _text(node: Node) -> str:
    return (node.text or b"").decode()


def _walk(node: Node, depth: int = 0) -> Iterator[tuple[int, Node]]:
    yield depth, node
    for child in node.children:
        yield from _walk(child, depth + 1)
