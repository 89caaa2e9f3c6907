r"""The text of a field to a value, for tool calls that are no plain JSON.

What the settings in `content_args` mean is transformers' `response_template`, version 1:

    xml-inline  '<parameter=city>\nRome\n</parameter>'   ->  {"city": "Rome"}
    kv-lines    'city: Rome\ndays: 3'                    ->  {"city": "Rome", "days": "3"}
    json        '{city:<escape>Rome<escape>}'            ->  {"city": "Rome"}, by unquoted_keys and string_delims
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import regex

__all__ = ["of_schema", "transformed", "value_of"]

_SECONDS = 1.0
_PLACEHOLDER = regex.compile(r"\{(\w+(?:\.\w+)*)\}")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def value_of(text: str, content: str, args: Mapping[str, Any]) -> Any:
    """Reads a text.

    Args:
        text: the text.
        content: the name of the way to read it.
        args: settings of that.

    Raises:
        ValueError: it cannot be read so.
        TimeoutError: an expression of the settings takes too long.
    """
    match content:
        case "json":
            return _of_json(text, args)
        case "xml-inline":
            return _of_tags(text, args)
        case "kv-lines":
            return _of_lines(text, args)
        case "int":
            return int(text)
        case "float":
            return float(text)
        case "bool":
            return text.strip().lower() in ("true", "1")
        case _:
            return text.strip() if args.get("strip", True) else text


def transformed(shape: Any, scope: Mapping[str, Any]) -> Any:
    """Returns a shape with what its placeholders, such as `{content.name}`, stand for.

    Raises:
        ValueError: one stands for nothing.
    """
    if isinstance(shape, Mapping):
        return {key: transformed(value, scope) for key, value in shape.items()}
    if isinstance(shape, list):
        return [transformed(value, scope) for value in shape]
    found = _PLACEHOLDER.fullmatch(shape) if isinstance(shape, str) else None
    if found is None:
        return shape
    value: Any = scope
    for key in found.group(1).split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"nothing at {shape}")
        value = value[key]
    return value


def of_schema(arguments: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments with those that are text, as all of an XML form are, of the types that a schema names.

    A text that cannot be of any of its types stays text.
    """
    return {
        name: _typed(value, _types(properties.get(name))) if isinstance(value, str) else value
        for name, value in arguments.items()
    }


def _types(schema: object) -> list[str]:
    if not isinstance(schema, Mapping):
        return []
    declared = schema.get("type")
    types = [declared] if isinstance(declared, str) else list(declared) if isinstance(declared, list) else []
    for union in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(union), list):
            types += [name for choice in choices for name in _types(choice)]
    return types + (["null"] if schema.get("nullable") else [])


def _typed(text: str, types: list[str]) -> Any:
    for name in types:
        with suppress(ValueError, RecursionError):
            return _of_type(text, name)
    return text


def _of_type(text: str, name: str) -> Any:
    word = text.strip()
    if name == "boolean" and word.lower() in _TRUTHS:
        return _TRUTHS[word.lower()]
    if name == "null" and word in ("null", "None"):
        return None
    if name in ("object", "array"):
        value = json.loads(text)
        if isinstance(value, dict if name == "object" else list):
            return value
    if name in ("integer", "number"):
        with suppress(ValueError):
            return int(word)
        number = float(word)
        if number.is_integer() and (name == "integer" or "." not in word):
            return int(number)
        if name == "number" and abs(number) < float("inf"):
            return number
    raise ValueError(text)


def _of_json(text: str, args: Mapping[str, Any]) -> Any:
    strings: list[str] = []

    def kept(match: Any) -> str:
        strings.append(match.group(1))
        return f"\x01{len(strings) - 1}\x02"

    delimiters = args.get("string_delims", [])
    if delimiters and ("\x01" in text or "\x02" in text):
        raise ValueError("a control character in JSON")
    working = text
    for begin, end in delimiters:
        pattern = f"{regex.escape(begin)}(.*?){regex.escape(end)}"
        working = regex.sub(pattern, kept, working, flags=regex.DOTALL, timeout=_SECONDS)
    if args.get("unquoted_keys"):
        working = regex.sub(r"(?<=[{,])\s*(\w+):", r'"\1":', working)
    if strings:
        working = regex.sub("\x01(\\d+)\x02", lambda match: json.dumps(strings[int(match.group(1))]), working)
    try:
        return json.loads(working)
    except RecursionError as error:
        raise ValueError("JSON within JSON without an end") from error
    except ValueError:
        if args.get("allow_non_json"):
            return text.strip()
        raise


def _of_tags(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    merged: set[str] = set()
    for match in regex.finditer(args["tag_pattern"], text, flags=regex.DOTALL, timeout=_SECONDS):
        key, value = match.group("key"), _part(match.groupdict().get("value") or "", args)
        if key in values and args.get("merge_duplicates"):
            values[key] = [*(values[key] if key in merged else [values[key]]), value]
            merged.add(key)
        else:
            values[key] = value
    return values


def _of_lines(text: str, args: Mapping[str, Any]) -> dict[str, Any]:
    separator = args.get("kv_sep", ":")
    pairs = (line.partition(separator) for line in text.split(args.get("line_sep", "\n")))
    return {key.strip(): _part(value.strip(), args) for key, found, value in pairs if found}


def _part(text: str, args: Mapping[str, Any]) -> Any:
    parser = args.get("value_parser")
    return text if parser is None else value_of(text, parser.get("name", "text"), parser.get("args", {}))
