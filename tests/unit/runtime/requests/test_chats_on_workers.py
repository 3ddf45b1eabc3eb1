"""A chat over loopback: each message has devices compute what is new of it, and nothing again."""

from __future__ import annotations

from collections import defaultdict

import numpy_model as synthetic
import small_tokenizers
from chat_templates import CHATML

from llrun.faces.console import Console
from llrun.faces.printer import Printer
from llrun.requests.chat_template import ChatTemplate
from llrun.requests.conversation import Conversation
from llrun.requests.dialogue import Dialogue
from llrun.requests.request import Request
from llrun.requests.tokenizer import Tokenizer

NAMES = ["head", "anna", "bert"]
ROLES = ["<|im_start|>", "<|im_end|>"]


def tokenizer() -> Tokenizer:
    """A token for each character that is used, and for numbers."""
    vocabulary = {token: number for number, token in enumerate([*small_tokenizers.SPECIAL, *ROLES])}
    for token in [*"abcdefghijklmnopqrstuvwxyz \n", *(f"({number})" for number in range(60))]:
        vocabulary[token] = len(vocabulary)
    made = small_tokenizers.Tokenizer(
        small_tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    )
    made.add_special_tokens([*small_tokenizers.SPECIAL, *ROLES])
    made.decoder = small_tokenizers.decoders.Fuse()
    return Tokenizer("the test's", small_tokenizers.data(made), synthetic.VOCABULARY)


def test_a_later_turn_computes_what_is_new_alone(cluster):
    computed: dict[int, list[int]] = defaultdict(list)  # positions, by the weights that they met

    def counting(x, table, ids, w, slots, caches):
        computed[id(w)].extend(ids[0].tolist())
        return synthetic.mix(x, table, ids, w, slots, caches)

    parts = {name: synthetic.device(name, NAMES, synthetic.library(t1=counting)) for name in NAMES}
    texts = tokenizer()
    with (
        ChatTemplate("the test's", {"default": CHATML}) as template,
        cluster(NAMES, parts).scheduler() as scheduler,
    ):
        model = scheduler.session.device.record.model
        dialogue, conversation, said = Dialogue(template, texts, model), Conversation(scheduler), []
        for number, question in enumerate(("what is ab", "and b", "why")):
            ask = dialogue.ask(question, 6, conversation.used)
            assert ask.fresh == (number == 0)
            printer = Printer(texts, (), ask.ids, model, Console(quiet=True), dialogue.ends)
            handle = conversation.submit(Request(ask.ids, ask.tokens, sink=printer.take))
            result = scheduler.run_until(handle)
            said += [*ask.ids]
            assert list(result.tokens) == synthetic.greedy(said, len(result.tokens))
            said += result.tokens
            dialogue.asked(ask)
            dialogue.answered(printer.finish() or "", result.tokens)
        assert conversation.used == len(said)
    # The newest token has been chosen and not been fed.
    assert len(computed) == len(synthetic.MIXERS)
    assert all(positions == list(range(len(said) - 1)) for positions in computed.values())
