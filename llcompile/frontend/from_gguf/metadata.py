"""A GGUF file's keys by name and type, and the one way to refuse what they say."""

from __future__ import annotations

from dataclasses import dataclass

from llcompile.gguf import Header, Value
from llcompile.ir.errors import CompileError

REMEDY = "Use the model's Hugging Face directory instead"


def refuse(header: Header, what: str, remedy: str = REMEDY) -> CompileError:
    """F145: the file says what is not understood, or nothing where something is needed."""
    return CompileError("F145", f"{header.path}: {what}. {remedy}.")


@dataclass(frozen=True)
class Keys:
    """The keys of `header` under `prefix`, "" for all. A value of another type raises CompileError F145."""

    header: Header
    prefix: str = ""

    def _find(self, key: str) -> Value | None:
        return self.header.values.get(self.prefix + key)

    def _mistyped(self, key: str, value: object, wanted: str) -> CompileError:
        text = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
        return refuse(self.header, f"{self.prefix}{key} is {text}, not {wanted}")

    def whole(self, key: str) -> int | None:
        value = self._find(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self._mistyped(key, value, "a whole number")
        return value

    def number(self, key: str) -> float | None:
        value = self._find(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self._mistyped(key, value, "a number")
        return value

    def text(self, key: str) -> str | None:
        value = self._find(key)
        if value is not None and not isinstance(value, str):
            raise self._mistyped(key, value, "a text")
        return value

    def flag(self, key: str) -> bool | None:
        value = self._find(key)
        if value is not None and not isinstance(value, bool):
            raise self._mistyped(key, value, "true or false")
        return value

    def texts(self, key: str) -> list[str] | None:
        value = self._find(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._mistyped(key, value, "a list of texts")
        texts = [item for item in value if isinstance(item, str)]
        if len(texts) != len(value):
            raise self._mistyped(key, value, "a list of texts")
        return texts

    def numbers(self, key: str) -> list[float] | None:
        value = self._find(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._mistyped(key, value, "a list of numbers")
        numbers = [item for item in value if isinstance(item, int | float)]
        if len(numbers) != len(value):
            raise self._mistyped(key, value, "a list of numbers")
        return numbers

    def required_whole(self, key: str) -> int:
        value = self.whole(key)
        if value is None:
            raise refuse(self.header, f"{self.prefix}{key} is not given")
        return value

    def required_number(self, key: str) -> float:
        value = self.number(key)
        if value is None:
            raise refuse(self.header, f"{self.prefix}{key} is not given")
        return value
