"""One value of a YAML text set or taken away, every other byte left as it is: comments, order and quotes are somebody else's.

A library that writes the document anew keeps comments, but not the indentation, quotes and line breaks of whoever wrote it; and undoing
has to give his very file back. What this cannot do to the text (an alias, a block scalar) is found out by reading the result, and refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

Path = Sequence[str | int]
_NULL = "tag:yaml.org,2002:null"


class UneditableYaml(ValueError):
    """The text cannot be changed in that place without changing something else."""


def with_value(text: str, path: Path, value: Any) -> str:
    """``text`` with the value at ``path`` set, or its entry taken away where ``value`` is None. Missing mappings are made.

    Raises UneditableYaml, and yaml.YAMLError where it is no YAML.
    """
    changed = _changed(text, path, value)
    try:
        as_wanted = yaml.safe_load(changed) == _expected(yaml.safe_load(text), path, value)
    except yaml.YAMLError:
        as_wanted = False
    if not as_wanted:
        raise UneditableYaml(f"{_said(path)} cannot be set without changing something else of the file (an alias?)")
    return changed


def _said(path: Path) -> str:
    return ".".join(map(str, path))


def _expected(data: Any, path: Path, value: Any) -> Any:
    whole = _unshared(data)
    within = whole
    for part in path[:-1]:
        if isinstance(within, dict) and within.get(part) is None:
            if value is None:
                return whole
            within[part] = {}
        within = within[part]
    if value is None:
        within.pop(path[-1], None)
    else:
        within[path[-1]] = value
    return whole


def _unshared(data: Any) -> Any:
    """A copy in which what an alias repeats is there twice."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(value) for value in data] if isinstance(data, list) else data


def _changed(text: str, path: Path, value: Any) -> str:
    node, at = yaml.compose(text, Loader=yaml.SafeLoader), 0
    while at < len(path):
        part = path[at]
        if isinstance(part, int):
            if not isinstance(node, yaml.SequenceNode) or part >= len(node.value):
                raise UneditableYaml(f"{_said(path)}: there is no entry {part}")
            node, at = node.value[part], at + 1
            continue
        if not isinstance(node, yaml.MappingNode):
            raise UneditableYaml(f"{_said(path)}: {_said(path[:at]) or 'the file'} is no mapping")
        found = next((i for i, (key, _) in enumerate(node.value) if key.value == part), None)
        last = at == len(path) - 1
        if found is None:
            return text if value is None else _added(text, node, part, _nested(path[at + 1 :], value))
        if last:
            return _removed(text, node, found) if value is None else _replaced(text, node, found, value)
        child = node.value[found][1]
        if child.tag == _NULL:  # `router_settings:` with nothing under it
            return text if value is None else _replaced(text, node, found, _nested(path[at + 1 :], value))
        node, at = child, at + 1
    raise UneditableYaml("no path was given")


def _nested(path: Path, value: Any) -> Any:
    for part in reversed(path):
        value = {part: value}
    return value


def _written(value: Any) -> str:
    """On one line, wherever it stands. JSON is YAML, but for the exponents of its numbers."""
    if not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False)
    return yaml.safe_dump(value).removesuffix("...\n").strip()


def _end(node: yaml.Node) -> int:
    """Where a node's own text ends: a block collection's mark is only at the next token, beyond comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end


def _replaced(text: str, node: yaml.MappingNode, i: int, value: Any) -> str:
    key, old = node.value[i]
    colon = text.index(":", key.end_mark.index)
    start = old.start_mark.index
    empty = start == old.end_mark.index
    if empty or (isinstance(old, yaml.CollectionNode) and not old.flow_style):  # it may begin on a line of its own
        return f"{text[: colon + 1]} {_written(value)}{text[colon + 1 if empty else _end(old) :]}"
    return text[:start] + _written(value) + text[_end(old) :]


def _added(text: str, node: yaml.MappingNode, key: str, value: Any) -> str:
    entry = f"{_written_key(key)}: {_written(value)}"
    if node.flow_style:
        if not node.value:
            at = node.start_mark.index + 1
            return text[:at] + entry + text[at:]
        at = _end(node.value[-1][1])
        return f"{text[:at]}, {entry}{text[at:]}"
    end = text.find("\n", _end(node))
    end = len(text) if end < 0 else end
    indent = " " * node.value[0][0].start_mark.column
    return f"{text[:end]}\n{indent}{entry}{text[end:]}"


def _written_key(key: str) -> str:
    return key if key.isidentifier() else json.dumps(key, ensure_ascii=False)


def _removed(text: str, node: yaml.MappingNode, i: int) -> str:
    key, old = node.value[i]
    if node.flow_style:
        if i > 0:
            return text[: _end(node.value[i - 1][1])] + text[_end(old) :]
        until = node.value[1][0].start_mark.index if len(node.value) > 1 else _end(old)
        return text[: key.start_mark.index] + text[until:]
    if len(node.value) == 1:
        raise UneditableYaml(f"{key.value} is the only entry there: an empty mapping would be left")
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    if text[start : key.start_mark.index].strip():  # `- key: value` begins the line: the next entry takes its place
        following = node.value[i + 1][0].start_mark.index
        return text[: key.start_mark.index] + text[following:]
    end = text.find("\n", _end(old))
    return text[:start] + ("" if end < 0 else text[end + 1 :])
