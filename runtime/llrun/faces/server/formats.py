"""The form that an answer was asked for in, as the JSON schema that it is to follow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llrun.faces.server.bodies import ResponseFormat
from llrun.faces.server.faults import invalid, not_supported

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TEXT, OBJECT, SCHEMA = "text", "json_object", "json_schema"


def schema_of(asked: ResponseFormat | None) -> Mapping[str, Any] | None:
    """None where any text will do. What a schema may hold is for the grammar's reader to say. Raises ApiError."""
    if asked is None or asked.type == TEXT:
        return None
    if asked.type == OBJECT:
        return {"type": "object"}
    if asked.type != SCHEMA:
        kinds = ", ".join((TEXT, OBJECT, SCHEMA))
        raise not_supported("response_format.type", f"{asked.type!r} is none of {kinds}")
    described = asked.json_schema
    if described is None:
        raise invalid("response_format needs json_schema: {name, schema}", "response_format.json_schema")
    if not NAME.fullmatch(described.name):
        rule = "1 to 64 letters, digits, _ and -"
        raise invalid(f"the schema's name must be {rule}", "response_format.json_schema.name")
    return described.schema
