"""From a YAML file to a model, with the line of everything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from everloop_contracts.spec import KeyPath, Misfits

__all__ = ["PipelineError", "load"]

BOOL = "tag:yaml.org,2002:bool"
_MAPPING = "must be keys with values"
MESSAGES = {
    "extra_forbidden": "there is no such key",
    "missing": "is missing",
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "tuple_type": "must be a list",
    "string_type": "must be a text",
    "union_tag_not_found": "{discriminator} is missing",
    "union_tag_invalid": "there is no {discriminator} '{tag}'; there are: {expected_tags}",
}
"""What is said instead of the words of the library, by its name of the finding."""
Model = TypeVar("Model", bound=BaseModel)


class PipelineError(ValueError):
    """A pipeline file that cannot be used; the message names file, line and field."""


def load(path: Path, model: type[Model]) -> Model:
    """Reads a file as a model.

    Raises:
        PipelineError: the file cannot be read, is not YAML, or does not fit; one line per finding.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        document = yaml.load(text, Loader=_Loader)  # a SafeLoader
        problems = [f"{line}: {name}: is there twice" for line, name in _duplicates(node)]
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PipelineError(f"{path}:{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}:1: not YAML: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # a date that is none, for example
        raise PipelineError(f"{path}:1: not YAML: {error}") from error
    except RecursionError as error:
        raise PipelineError(f"{path}:1: not YAML: nested too deep, or in itself") from error
    try:
        loaded = model.model_validate(document)
    except ValidationError as error:
        problems += [problem for item in error.errors() for problem in _problems(item, node)]
    if problems:
        raise PipelineError("\n".join(f"{path}:{problem}" for problem in problems))
    return loaded


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: to YAML 1.1 the key `on` and the category NO are truth values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    BOOL, re.compile("^(?:true|false|True|False|TRUE|FALSE)$"), list("tfTF")
)


def _duplicates(node: yaml.Node | None, path: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """Line and name of every key that its mapping holds already; YAML lets the last one win in silence."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _duplicates(item, (*path, str(number)))
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = (*path, str(key.value))
            if str(key.value) in seen:
                yield key.start_mark.line + 1, ".".join(here)
            seen.add(str(key.value))
            yield from _duplicates(value, here)


def _problems(item: ErrorDetails, node: yaml.Node | None) -> Iterator[str]:
    """One of pydantic's findings as `line: field: message`; what several keys do together may be more than one."""
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, Misfits):
        found = [((*item["loc"], *path), text) for path, text in cause.found]
    else:
        said = MESSAGES.get(item["type"])
        text = (
            said.format(**item.get("ctx", {}))
            if said
            else item["msg"].removeprefix("Value error, ")
        )
        found = [(item["loc"], text)]
    for path, text in found:
        line, name = _locate(node, path)
        yield f"{line}: {name}: {text}"


def _locate(node: yaml.Node | None, path: KeyPath) -> tuple[int, str]:
    """Line (from 1) of the deepest part of `path` that the document holds, and the path's name.

    Parts in between that the document does not hold are left out: pydantic adds the kind of a feature or gate.
    """
    line, names = 1, []
    for number, part in enumerate(path, start=1):
        found = _child(node, part)
        if found:
            line, node = found
        if found or number == len(path):
            names.append(str(part))
    return line, ".".join(names) or "the file"


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """Line (from 1) and node of one key or item; None if the document does not hold it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None
