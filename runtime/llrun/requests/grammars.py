"""Answers that follow a grammar, by llguidance: which tokens keep to a JSON schema, and which end it.

A grammar is read, and what may come next is reckoned, on threads of its own: the one that drives the devices takes
what is there. llguidance counts what it does and gives up at a bound, so neither takes long or much memory: of what was
tried the worst took 0.3 s to read and 0.1 s a token, where usual schemas take 3 ms and 0.3 ms (49,152 tokens).
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llrun.errors import INTERNAL, RunError
from llrun.requests.constraint import Constraint
from llrun.requests.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

NO_LLGUIDANCE, REFUSED_GRAMMAR, GIVEN_UP, NO_GRAMMARS = "R140", "R141", "R142", "R143"
MAX_GRAMMAR_BYTES = 128 << 10
MAX_REASON = 400  # characters
PLACE = re.compile(r"^at \d+\(\d+\): ")
KEPT = 16  # grammars, of those that were read last
# Between the parts of a JSON value. Without a bound a model can go on with spaces until the context is full.
SPACE = r"[\n]{0,2}[ ]{0,20}"
Rules = Mapping[str, Any]


def json_grammar(schema: Rules) -> str:
    """The grammar of the JSON values that a schema allows."""
    return f"start: %json {json.dumps(bounded(schema))}"


def bounded(schema: Rules, lenient: bool = False) -> Rules:
    """The schema with the bounds here for what its own wishes for llguidance are. `lenient`: what is not known of it is
    left out."""
    return {**schema, "x-guidance": {"whitespace_pattern": SPACE, "lenient": lenient}}


class Grammars:
    """Reads grammars for one model. `ends`: the tokens that end its answers, of which one follows what is complete.

    May be used from several threads; what it makes is for one. The vocabulary is read at the first use, which takes up
    to a second of large ones.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ends = sorted(ends)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._read: OrderedDict[str, LLMatcher] = OrderedDict()
        self._threads = ThreadPoolExecutor(1, "grammars")

    def constraints(self, grammar: str, count: int) -> list[Constraint]:
        """What holds `count` answers to the grammar, each from its beginning. It takes a while: not for the
        thread that drives.

        Raises RunError R140 (llguidance is missing), R141 (it refuses the grammar, and why) and R143 (the model's
        vocabulary is of no kind that it knows, or has no token that ends an answer).
        """
        size = len(grammar.encode())
        if size > MAX_GRAMMAR_BYTES:
            raise RunError(REFUSED_GRAMMAR, f"the schema has {size} bytes, {MAX_GRAMMAR_BYTES} are the most")
        with self._lock:
            first = self._matcher(grammar)
            return [_Followed(first.deep_copy(), self._vocab_size, self._threads) for _ in range(count)]

    def _matcher(self, grammar: str) -> LLMatcher:
        found = self._read.pop(grammar, None) or self._compiled(grammar)
        self._read[grammar] = found
        while len(self._read) > KEPT:
            self._read.popitem(last=False)
        return found

    def _compiled(self, grammar: str) -> LLMatcher:
        if self._vocabulary is None:
            self._vocabulary = self._readable()
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)  # the bounds as they are
        made = LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if made.is_error():
            raise RunError(REFUSED_GRAMMAR, _one_line(made.get_error()))
        return made

    def _readable(self) -> LLTokenizer:
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            needs = "answers that follow a schema need the package llguidance: pip install 'llrun[serve]'"
            raise RunError(NO_LLGUIDANCE, needs) from error
        if not self._ends:
            raise RunError(
                NO_GRAMMARS, "this model has no token that ends an answer, as what follows a schema needs"
            )
        try:
            return LLTokenizer(self._tokenizer.file_text(), self._vocab_size, self._ends)
        except ValueError as error:
            reason = f"this model's tokenizer cannot be used with a schema: {error}"
            raise RunError(NO_GRAMMARS, reason) from error


class _Followed:
    """A grammar on its way. What may come after a token is reckoned while the devices compute what will."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, threads: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._threads = threads
        self._next: Future[NDArray[np.int64]] = threads.submit(self._reckon)

    def allowed(self) -> NDArray[np.int64]:
        ids = self._next.result()
        if not len(ids):
            raise RunError(
                GIVEN_UP, f"the schema takes too much: {_one_line(self._matcher.get_error())}", INTERNAL
            )
        return ids

    def take(self, token: int) -> None:
        self._next.result()
        self._next = self._threads.submit(self._reckon, token)

    def _reckon(self, *taken: int) -> NDArray[np.int64]:
        """Ascending ids; none where the grammar had to be given up."""
        if taken:
            self._matcher.consume_tokens(list(taken))
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            return np.empty(0, np.int64)
        return np.flatnonzero(np.unpackbits(bits, count=self._vocab_size, bitorder="little"))


def _one_line(reason: str) -> str:
    """llguidance's words without the place in our grammar, of which whoever sent the schema knows nothing."""
    return PLACE.sub("", " ".join(reason.split()))[:MAX_REASON]
