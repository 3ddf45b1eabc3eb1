"""Texts as a chat template writes them, or as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.faces.template_files import read_chat_template
from llrun.requests.chat_template import ChatTemplate, Message
from llrun.requests.dialogue import SYSTEM, USER, Dialogue, turn_ends
from llrun.requests.tokenizer import Tokenizer
from llrun.schema import ModelInfo


@dataclass(frozen=True)
class Chatting:
    """What the command line says of chats. `template`: a file in place of the model's own. `system`: the text of the
    first message. `raw`: no template is used. `keep_context`: see Dialogue."""

    template: Path | None = None
    system: str | None = None
    raw: bool = False
    keep_context: bool = False


AS_THE_MODEL = Chatting()


@dataclass(frozen=True)
class Written:
    """How texts are asked: in `template`, or as they are where it is None."""

    template: ChatTemplate | None
    chatting: Chatting

    def asked(self, text: str) -> str:
        """A question of its own, up to where the answer begins."""
        return (
            self.template.render([*self._first(), {"role": USER, "content": text}]) if self.template else text
        )

    def ends(self, tokenizer: Tokenizer | None) -> frozenset[int]:
        """Tokens that end an answer besides the model's."""
        return turn_ends(self.template, tokenizer) if self.template and tokenizer else frozenset()

    def dialogue(self, tokenizer: Tokenizer, model: ModelInfo) -> Dialogue | None:
        """A conversation in the template, with the system's message alone; None where there is no template."""
        if self.template is None:
            return None
        dialogue = Dialogue(self.template, tokenizer, model, self.chatting.keep_context)
        dialogue.begin(self._first())
        return dialogue

    def _first(self) -> list[Message]:
        system = self.chatting.system
        return [] if system is None else [{"role": SYSTEM, "content": system}]


PLAIN = Written(None, AS_THE_MODEL)


@contextmanager
def written_by(stored: StoredSlice, chatting: Chatting, ids: bool) -> Iterator[ChatTemplate | None]:
    """The template to be used, seen to work; None for token ids (`ids`), with `raw`, and where there is none.

    Raises RunError R108 for options that need one, R130 to R134 as ChatTemplate does."""
    own = chatting.template is not None
    if chatting.raw and own:
        raise RunError("R108", "give --chat-template or --raw, not both")
    template = None if chatting.raw or ids else read_chat_template(stored, chatting.template)
    if template is None:
        _check_unneeded(chatting, ids)
        yield None
        return
    with template:
        template.check()
        if chatting.system is not None:
            Written(template, chatting).asked("A question")  # some templates refuse a system's message
        yield template


def _check_unneeded(chatting: Chatting, ids: bool) -> None:
    if chatting.template is None and chatting.system is None and not chatting.keep_context:
        return
    reason = "token ids are continued as they are"
    if not ids:
        reason = (
            "--raw leaves it out" if chatting.raw else "this model came with none: give --chat-template FILE"
        )
    raise RunError("R108", f"--chat-template, --system and --keep-context need a chat template, and {reason}")
