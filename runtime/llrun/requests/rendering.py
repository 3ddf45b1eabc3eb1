"""Renders chat templates, as a process of its own: `python -m llrun.requests.rendering`.

A template is a program of whoever made the model. It runs in jinja2's immutable sandbox, and here, where no key and no
text of another conversation is, where memory is limited, and which the head ends when it takes too long: an expression
such as 7 ** (10 ** 8) can be interrupted by nothing else.

Lines of JSON on stdin and stdout. First the templates and limits, answered by an empty object or a fault; then
requests, each a template's name and its variables, answered by {"text"} or {"fault", "reason"}. The environment is that
of transformers' `apply_chat_template`, so that strings are the same.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template

MISSING, SYNTAX, REFUSED, FAILED, BOUNDS = "missing", "syntax", "refused", "failed", "bounds"
OLDEST = (3, 1, 6)  # older sandboxes can be left
FAILURES = (ArithmeticError, AttributeError, AssertionError, LookupError, TypeError, ValueError)


class Fault(Exception):
    """What is answered in place of a text."""

    def __init__(self, fault: str, reason: str) -> None:
        super().__init__(reason)
        self.answer = {"fault": fault, "reason": reason}


def main() -> None:
    """Serve until the end of input."""
    start = json.loads(sys.stdin.readline() or "null")
    if start is None:
        return
    limit_s, limit_bytes, limit_characters = start["limit_s"], start["limit_bytes"], start["limit_characters"]
    compiled: dict[str, Template] = {}

    def prepare() -> dict[str, str]:
        environment = _environment()
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        compiled.update({name: _compiled(environment, text) for name, text in start["templates"].items()})
        return {}

    _answer(prepare, limit_s)
    for line in sys.stdin:
        request = json.loads(line)

        def render(request: dict[str, Any] = request) -> dict[str, str]:
            pieces = compiled[request["template"]].generate(request["variables"])
            return {"text": _joined(pieces, limit_characters)}

        _answer(render, limit_s)


def _answer(work: Callable[[], dict[str, str]], limit_s: float) -> None:
    """Do it, and write its answer or its fault. Past the limit the process is ended by the system: the head may be
    gone."""
    signal.setitimer(signal.ITIMER_REAL, limit_s + 1.0)
    try:
        answer = work()
    except Fault as fault:
        answer = fault.answer
    except RecursionError:
        answer = Fault(FAILED, "it calls itself, or nests, without end").answer
    except MemoryError:
        answer = Fault(BOUNDS, "it takes more memory than it may have").answer
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _compiled(environment: Environment, text: str) -> Template:
    from jinja2 import TemplateSyntaxError

    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise Fault(SYNTAX, f"line {error.lineno}: {error.message}") from error
    except (SyntaxError, *FAILURES) as error:  # from the Python that jinja2 makes of it
        raise Fault(SYNTAX, f"{type(error).__name__}: {error}") from error


def _joined(pieces: Iterable[str], limit_characters: int) -> str:
    """The text. Raises Fault."""
    from jinja2 import TemplateError

    kept: list[str] = []
    length = 0
    try:
        for piece in pieces:
            kept.append(piece)
            length += len(piece)
            if length > limit_characters:
                raise Fault(BOUNDS, f"it makes more than {limit_characters} characters")
    except TemplateError as error:
        # One that the template raises itself is of this class exactly.
        own = type(error) is TemplateError
        raise Fault(REFUSED if own else FAILED, str(error.message or "")) from error
    except FAILURES as error:
        raise Fault(FAILED, f"{type(error).__name__}: {error}") from error
    return "".join(kept)


def _environment() -> Environment:
    """As transformers has it. Raises Fault where jinja2 is missing or too old."""
    try:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise Fault(MISSING, "it is not installed") from error
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit()) < OLDEST:
        raise Fault(MISSING, f"version {jinja2.__version__} is too old")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dicts(), namespace=_namespace()
    )
    return environment


def _generation_tag() -> Any:
    """{% generation %}: what it encloses is the assistant's, which makes no difference to the text."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.runtime import Macro

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("enclosed"), [], [], body).set_lineno(line)

        def enclosed(self, caller: Macro) -> str:
            return str(caller())

    return GenerationTag


def _namespace() -> Any:
    """namespace(), whose attributes cannot be those that Python keeps for itself."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace holds no attribute {name!r}")

    class CheckedNamespace(Namespace):
        def __init__(*args: Any, **attributes: Any) -> None:  # so that an attribute may be called self
            self, *given = args
            values = dict(*given, **attributes)
            for name in values:
                check(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    return CheckedNamespace


class _Dicts:
    """dict() and dict.fromkeys(), without the class itself."""

    def __call__(self, *args: Any, **entries: Any) -> dict[Any, Any]:
        return dict(*args, **entries)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
            sort_keys: bool = False) -> str:  # fmt: skip
    """Unlike jinja2's own it leaves <, > and & as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


if __name__ == "__main__":
    main()
