"""One value in a file of a repository: found, and replaced where it stands, so that comments and layout stay as they are.

``deploy/chat.yaml#spec.replicas``: the one document that has it; ``containers[0]``, ``containers[name=vllm]`` for an item of a list;
``args[--max-num-seqs]`` for the value of an argument. ``prod.tfvars#vm_size``: a variable of Terraform. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

Value = int | float | str | bool
_PART = re.compile(r"([^.\[\]]+)?((?:\[[^\[\]]+\])*)")
_INDEX = re.compile(r"\[([^\[\]]+)\]")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


class FieldError(Exception):
    """A field is not there, is there more than once, or cannot be replaced. The text says what to do."""


@dataclass(frozen=True, slots=True)
class FieldPath:
    """Where a value stands."""

    file: str
    path: str

    @classmethod
    def parse(cls, text: str) -> FieldPath:
        """Raises ValueError."""
        file, mark, path = text.partition("#")
        if not (file and mark and path) or file.startswith("/") or ".." in file.split("/"):
            raise ValueError(f"{text!r} is no FILE#PATH within the repository, such as deploy/chat.yaml#spec.replicas")
        if not file.endswith((".yaml", ".yml", ".json", ".tfvars")):
            raise ValueError(f"{file}: only .yaml, .yml, .json and .tfvars are read")
        _parts(path)
        return cls(file, path)

    def __str__(self) -> str:
        return f"{self.file}#{self.path}"


@dataclass(frozen=True, slots=True)
class _Place:
    start: int
    end: int
    value: Value
    quote: str = ""
    prefix: str = ""
    """Before the value within the same scalar: ``--max-num-seqs=``."""


def value_of(text: str, field: FieldPath) -> Value:
    """Raises FieldError."""
    return _place(text, field).value


def replaced(text: str, field: FieldPath, new: Value) -> str:
    """The file with another value there, and nothing else changed. Raises FieldError."""
    place = _place(text, field)
    if text[place.start] in "&!":
        raise FieldError(f"{field} has an anchor or a tag: other values may change with it")
    spelled = _spelled(new, place, tfvars=field.file.endswith(".tfvars"))
    found = text[: place.start] + spelled + text[place.end :]
    if value_of(found, field) != new:
        raise FieldError(f"{field} cannot be set to {new!r}")
    if not field.file.endswith(".tfvars"):
        before, after = (list(_leaves(each)) for each in (text, found))
        if len(before) != len(after) or sum(a != b for a, b in zip(before, after, strict=True)) > 1:
            raise FieldError(f"{field} is shared by an anchor: other values would change with it")
    return found


def _place(text: str, field: FieldPath) -> _Place:
    return _in_tfvars(text, field) if field.file.endswith(".tfvars") else _in_yaml(text, field)


def _in_tfvars(text: str, field: FieldPath) -> _Place:
    line = re.compile(
        rf'^[ \t]*{re.escape(field.path)}[ \t]*=[ \t]*("[^"\n]*"|[^\s#/]+)[ \t]*((#|//).*)?$', re.MULTILINE
    )
    found = list(line.finditer(text))
    if len(found) != 1:
        raise FieldError(f"{field} is there {len(found)} times as a simple value; once is needed")
    raw = found[0][1]
    quote = '"' if raw.startswith('"') else ""
    inner = raw[1:-1] if quote else raw
    value: Value = inner if quote else _scalar(inner)
    return _Place(found[0].start(1), found[0].end(1), value, quote)


def _in_yaml(text: str, field: FieldPath) -> _Place:
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise FieldError(f"{field.file} is no YAML: {str(error).splitlines()[0]}") from error
    found = [place for node in documents for place in _walk(node, _parts(field.path))]
    if len(found) != 1:
        raise FieldError(f"{field} is there {len(found)} times; it must be stated once, as a plain value")
    return found[0]


def _parts(path: str) -> list[str]:
    """Keys, and in brackets what chooses an item. Raises ValueError."""
    parts: list[str] = []
    for piece in path.split(".") if "[" not in path else re.split(r"\.(?![^\[]*\])", path):
        match = _PART.fullmatch(piece)
        if match is None or not piece:
            raise ValueError(
                f"{path!r} is no path of keys, such as spec.replicas or containers[0].args[--max-num-seqs]"
            )
        if match[1]:
            parts.append(match[1])
        parts += [f"[{chosen}]" for chosen in _INDEX.findall(match[2])]
    return parts


def _walk(node: yaml.Node, parts: list[str]) -> Iterator[_Place]:
    if not parts:
        if isinstance(node, yaml.ScalarNode) and (node.style or "") in ("", "'", '"'):
            yield _Place(node.start_mark.index, node.end_mark.index, _scalar(node.value, node), node.style or "")
        return
    part, rest = parts[0], parts[1:]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                yield from _walk(value, rest)
    elif isinstance(node, yaml.SequenceNode) and part.startswith("["):
        yield from _item(node, part[1:-1], rest)


def _item(node: yaml.SequenceNode, chosen: str, rest: list[str]) -> Iterator[_Place]:
    if chosen.isdecimal():
        yield from _walk(node.value[int(chosen)], rest) if int(chosen) < len(node.value) else ()
    elif chosen.startswith("-"):
        for i, item in enumerate(node.value):
            if not isinstance(item, yaml.ScalarNode):
                continue
            flag, equals, value = item.value.partition("=")
            if flag == chosen and equals:
                yield _Place(item.start_mark.index, item.end_mark.index, _scalar(value), item.style or "", f"{flag}=")
            elif flag == chosen and i + 1 < len(node.value):
                yield from _walk(node.value[i + 1], rest)
    else:
        name, _, wanted = chosen.partition("=")
        for item in node.value:
            pairs = item.value if isinstance(item, yaml.MappingNode) else []
            if any(key.value == name and getattr(value, "value", None) == wanted for key, value in pairs):
                yield from _walk(item, rest)


def _scalar(text: str, node: yaml.ScalarNode | None = None) -> Value:
    """As a value; text in quotes that is a number is one, as arguments and environments hold them."""
    if node is not None and node.style in ("'", '"') and not re.fullmatch(r"-?\d+(\.\d+)?", text):
        return text
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return found if isinstance(found, int | float | str | bool) else text


def _spelled(new: Value, place: _Place, *, tfvars: bool) -> str:
    text = json.dumps(new) if not isinstance(new, str) else new
    if place.prefix or place.quote:
        inner = place.prefix + text
        if not _PLAIN.fullmatch(inner.lstrip("-").replace("=", "")):
            raise FieldError(f"{new!r} would have to be quoted otherwise than the value before")
        return f"{place.quote}{inner}{place.quote}"
    if isinstance(new, str) and (tfvars or not _PLAIN.fullmatch(new) or yaml.safe_load(new) != new):
        return json.dumps(new)
    return text


def _leaves(text: str) -> Iterator[str]:
    """Every scalar, those that an alias repeats too."""
    todo: list[yaml.Node] = list(yaml.compose_all(text, Loader=yaml.SafeLoader))[::-1]
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.ScalarNode):
            yield node.value
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value[::-1]
        elif isinstance(node, yaml.MappingNode):
            todo += [each for pair in node.value[::-1] for each in pair[::-1]]
