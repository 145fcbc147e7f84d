"""YAML as scenarios and overrides are written in: what YAML 1.1 would silently make into something else is an error.

YAML 1.1, which PyYAML reads, makes 8 of `010`, 90 of `1:30`, true of `on` and 1000 of `1_000`; of a key given twice it
takes the last. A value must mean the same to YAML 1.2, or stand in quotes. What YAML can do beyond settings (Python
objects, binary keys, aliases that multiply) is an error too, found before anything is built of it. What the settings
mean does not belong here.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_CORE = {
    f"{_TAG}bool": re.compile("true|True|TRUE|false|False|FALSE"),
    f"{_TAG}int": re.compile("[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+"),
    f"{_TAG}float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}
"""How YAML 1.2 writes them (its core schema). What YAML 1.1 takes for one of them and does not look like this is
rewritten."""
_TAGS = {*_CORE, *(f"{_TAG}{name}" for name in ("null", "str", "seq", "map", "merge"))}
_KEY_TAGS = {f"{_TAG}str", f"{_TAG}merge"}
MOST_CHARACTERS = 256 << 10
"""Of one text. PyYAML takes some 15 s for a million."""
DEEPEST = 100
"""Mappings and lists within each other."""
_MOST_NODES = 100_000
"""Values of one text when every alias is written out: ten lines of aliases to aliases would be billions."""
_LONGEST_NUMBER = 40
_LONGEST_INTERPOLATION = 1000
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class RewrittenError(yaml.MarkedYAMLError):
    """YAML would make something else of what is written. `problem` says what, and the remedy; `problem_mark` says
    where."""


class _Loader(yaml.SafeLoader):
    """Composes and constructs one text. Numbers such as `1e3` are numbers, and dates stay text, as OmegaConf reads
    them."""

    def __init__(self, text: str, *, comments: bool) -> None:
        super().__init__(text)
        self._comments = comments
        self._depth = 0

    def scan_to_next_token(self) -> None:
        start = self.pointer
        super().scan_to_next_token()
        if not self._comments and "#" in self.buffer[start : self.pointer]:
            written = self.buffer.rstrip("\0")
            kept = written[:start].rstrip() or "null"
            raise _rewritten(
                f"`{written}` is written, and YAML would make `{kept}` of it: what follows ` #` is a comment. "
                "Put a value with ` #` in quotes, or leave the comment out.",
                self.get_mark(),
            )
        if self.peek() == "\t":
            raise _rewritten(
                "a tab is written, which YAML takes neither as indentation nor between values, so it would read no"
                " further. Write spaces, or put a text that has a tab in quotes.",
                self.get_mark(),
            )

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if _HALF_PAIR.search(node.value):
            raise _rewritten(
                "half of a surrogate pair is written, which is no character. Write the whole one.", node.start_mark
            )
        if "${" in node.value and len(node.value) > _LONGEST_INTERPOLATION:
            raise _rewritten(
                f"an interpolation of {len(node.value)} characters is written, expected at most"
                f" {_LONGEST_INTERPOLATION}.",
                node.start_mark,
            )
        core = _CORE.get(node.tag)
        if core is not None and len(node.value) > _LONGEST_NUMBER:
            raise _rewritten(
                f"`{node.value:.20}...` is written, {len(node.value)} characters that YAML takes for one number."
                " Shorten it, or put it in quotes for the text.",
                node.start_mark,
            )
        if core is not None and not core.fullmatch(node.value):
            raise _rewritten(self._said_of(node), node.start_mark)
        return node

    def _said_of(self, node: yaml.ScalarNode) -> str:
        """What YAML 1.1 would make of a scalar, and what to write instead."""
        value, kind = node.value, node.tag.removeprefix(_TAG)
        try:
            made = self.yaml_constructors[node.tag](self, node)
        except (ValueError, KeyError):  # only an explicit tag leads here, e.g. `!!int ten`
            return f"`{value}` is written and is no {kind}. Leave the tag out."
        write = f"Write {made}"
        if kind == "bool":
            write, why = f"Write {str(made).lower()}", "a boolean"
        elif ":" in value:
            why = "a number in base 60"
        elif "_" in value:
            why = "a number, its underscores dropped"
        elif "b" in value:
            why = "a binary number"
        else:
            write, why = f"Write {int(value)} for the decimal number, {made} for the octal one", "an octal number"
        shown = str(made).lower() if kind == "bool" else made
        return (
            f"`{value}` is written, and YAML would make {shown} of it, {why}. {write}, or '{value}' in quotes for the"
            " text."
        )

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > DEEPEST:
            raise _rewritten(f"more than {DEEPEST} levels of mappings and lists are written.", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and node.tag not in _TAGS:
            raise _rewritten(
                f"the tag `{node.tag.replace(_TAG, '!!'):.60}` is written; settings are texts, numbers, booleans, lists"
                " and mappings. Leave the tag out.",
                mark,
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEY_TAGS:
                written = f"`{key.value}`" if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                raise _rewritten(
                    f"{written:.60} is written as a key, expected a name. Put a name that looks like a value in"
                    " quotes.",
                    key.start_mark,
                )
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                lines = _line(before), _line(key)
                where = "in one line" if lines[0] == lines[1] else f"on lines {lines[0]} and {lines[1]}"
                last = f", `{value.value}`" if isinstance(value, yaml.ScalarNode) else ""
                raise _rewritten(
                    f"the key `{key.value}` is written twice in one mapping, {where}, and YAML would take the"
                    f" last{last}. Remove one of them.",
                    key.start_mark,
                )
        return node


# As OmegaConf: YAML 1.1 demands a dot in a number with an exponent, and makes dates of what looks like one.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _line(node: yaml.Node) -> int:
    assert node.start_mark is not None  # composed nodes have one
    return node.start_mark.line + 1


def _written_out(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node is when every alias in it is written out. `sizes`: those of nodes seen, by identity; 0
    while one is being counted."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    known = sizes.get(id(node))
    if known == 0:
        raise _rewritten("an alias is written inside what it stands for.", node.start_mark)
    if known is None:
        sizes[id(node)] = 0
        inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        known = sizes[id(node)] = 1 + sum(_written_out(one, sizes) for one in inner)
    return known


def _rewritten(problem: str, mark: Any) -> RewrittenError:
    return RewrittenError(problem=problem, problem_mark=mark)


def read_yaml(text: str, *, comments: bool = True) -> tuple[Any, yaml.Node | None]:
    """The one document in `text`, and its node (None for an empty text), which knows the lines. Without `comments` a
    comment is an error.

    Raises:
        RewrittenError: something in it would not be read as it is written, or is no setting.
        yaml.YAMLError: not valid YAML, or too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"{len(text)} characters, expected at most {MOST_CHARACTERS}")
    loader = _Loader(text, comments=comments)
    try:
        node: yaml.Node | None = loader.get_single_node()
        if node is not None and _written_out(node, {}) > _MOST_NODES:
            raise _rewritten(
                f"its aliases stand for more than {_MOST_NODES} values. Write them out, or fewer.", node.start_mark
            )
        return (None if node is None else loader.construct_document(node)), node
    except (ValueError, OverflowError) as error:  # such as an escape beyond Unicode
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()
