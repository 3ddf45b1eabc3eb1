"""Functions that a chat's answer may call, and calls and results in its messages, from a request's body."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llrun.faces.server.bodies import CalledBody, ToolBody, ToolChoice
from llrun.faces.server.faults import ApiError, invalid, not_supported
from llrun.requests.tool_grammar import Function

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_TOOLS = 128
FUNCTION = "function"
NONE, AUTO, REQUIRED = "none", "auto", "required"


@dataclass(frozen=True)
class Offer:
    """`tools`: as templates read them. `functions`: those that may be called, one at least where an answer `must`;
    `several`: more than one."""

    tools: list[dict[str, Any]]
    functions: tuple[Function, ...]
    must: bool
    several: bool


def offer_of(
    tools: Sequence[ToolBody] | None, choice: str | ToolChoice | None, several: bool | None
) -> Offer | None:
    """None where an answer is to call nothing. Raises ApiError."""
    offered = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools or ())]
    if len(offered) > MAX_TOOLS:
        raise invalid(f"{len(offered)} tools are offered, {MAX_TOOLS} are the most", "tools")
    functions = {function.name: function for _, function in offered}
    if len(functions) < len(offered):
        raise invalid("two tools have the same name", "tools")
    named = _named(choice)
    if named is not None and named not in functions:
        raise invalid(f"tool_choice names {named!r}, which is not among the tools", "tool_choice")
    if not offered and choice == REQUIRED:
        raise invalid("tool_choice 'required' needs tools", "tool_choice")
    if not offered or choice == NONE:
        return None
    chosen = tuple(functions.values()) if named is None else (functions[named],)
    more = several is not False and named is None
    return Offer([tool for tool, _ in offered], chosen, named is not None or choice == REQUIRED, more)


def _tool(tool: ToolBody, place: str) -> tuple[dict[str, Any], Function]:
    if tool.type != FUNCTION:
        raise not_supported(f"{place}.type", f"{tool.type!r}; tools are functions")
    asked = tool.function
    if asked is None:
        raise invalid(f"{place} needs function: {{name, parameters}}", f"{place}.function")
    if not NAME.fullmatch(asked.name):
        raise invalid(f"{place}: a name is 1 to 64 letters, digits, _ and -", f"{place}.function.name")
    parameters = asked.parameters or {"type": "object", "properties": {}}
    if parameters.get("type", "object") != "object":
        raise invalid(f"{place}: the parameters are an object", f"{place}.function.parameters")
    described = {} if asked.description is None else {"description": asked.description}
    shown = {"name": asked.name, **described, "parameters": parameters}
    return {"type": FUNCTION, "function": shown}, Function(asked.name, parameters, bool(asked.strict))


def _named(choice: str | ToolChoice | None) -> str | None:
    """The function that must be called, where the choice is one."""
    if isinstance(choice, ToolChoice):
        if choice.type != FUNCTION or choice.function is None:
            raise not_supported("tool_choice.type", f"{choice.type!r}; name a function")
        return choice.function.name
    if choice not in (None, NONE, AUTO, REQUIRED):
        raise invalid(
            f"tool_choice is {choice!r}, it must be none, auto, required or a function", "tool_choice"
        )
    return None


def calls_of(calls: Sequence[CalledBody], place: str) -> list[dict[str, Any]]:
    """Calls of an earlier answer as templates read them: their arguments are objects there."""
    return [_call(call, f"{place}[{i}]") for i, call in enumerate(calls)]


def _call(call: CalledBody, place: str) -> dict[str, Any]:
    if call.type != FUNCTION or call.function is None:
        raise not_supported(f"{place}.type", f"{call.type!r}; tools are functions")
    given = call.function.arguments
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except (ValueError, RecursionError) as error:
            raise _no_object(place) from error
    if not isinstance(given, dict):
        raise _no_object(place)
    numbered = {} if call.id is None else {"id": call.id}
    return {**numbered, "type": FUNCTION, "function": {"name": call.function.name, "arguments": given}}


def _no_object(place: str) -> ApiError:
    where = f"{place}.function.arguments"
    return invalid(f"{where} is not a JSON object as text", where)
