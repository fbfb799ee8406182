"""Random JSON schemas whose values are bounded, and how long those can be."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

_NAMES = ("id", "name", "tags", "größe", "a b", "x", "kind", "inner")
#: Bytes of a character at most: written as two escapes.
_CHARACTER = 12


def schema(rng: random.Random, most: int) -> tuple[Schema, int]:
    """An object schema, and the bytes of its longest value: ``most`` at most."""
    while True:
        found = _object(rng, depth=2)
        if (size := longest(found)) <= most:
            return found, size


def longest(of: Schema) -> int:
    """Bytes of the longest value, with a space wherever there may be one."""
    if "anyOf" in of:
        return max(map(longest, of["anyOf"]))
    if "enum" in of:
        return max(len(str(value).encode()) + 8 for value in of["enum"])
    match of["type"]:
        case "object":
            pairs = of["properties"].items()
            return 4 + sum(len(name.encode()) + 8 + longest(value) for name, value in pairs)
        case "array":
            return 4 + of["maxItems"] * (longest(of["items"]) + 3)
        case "string":
            return 2 + _CHARACTER * int(of["maxLength"])
        case "integer":
            return max(len(str(of["minimum"])), len(str(of["maximum"])))
        case _:
            return 5


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _any(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


def _any(rng: random.Random, depth: int) -> Schema:
    kinds = ["string", "integer", "boolean", "enum"]
    if depth > 0:
        kinds += ["array", "object", "anyOf"]
    match rng.choice(kinds):
        case "string":
            low = rng.randint(0, 3)
            return {"type": "string", "minLength": low, "maxLength": rng.randint(low, 6)}
        case "integer":
            low = rng.randint(-2000, 2000)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}
        case "boolean":
            return {"type": "boolean"}
        case "enum":
            return {
                "enum": rng.sample(["red", "grün", 3, -1, True, None, 'a"b'], rng.randint(1, 4))
            }
        case "array":
            low = rng.randint(0, 2)
            items = _any(rng, depth - 1)
            return {"type": "array", "items": items, "minItems": low, "maxItems": low + 2}
        case "anyOf":
            return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(2, 3))]}
        case _:
            return _object(rng, depth)
