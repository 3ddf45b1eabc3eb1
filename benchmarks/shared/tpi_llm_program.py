"""One process of TPI-LLM, with its own packages on the path: cut a checkpoint, or take part in one request.

    python tpi_llm_program.py split MODEL DEVICES
    python tpi_llm_program.py generate MODEL RANK DEVICES MASTER PORT FILE_PORT PROMPT NEW

Its own example's `main` runs, with two differences: all weights are in memory before the clock starts, and instead of
text the first device prints when each token came.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
import time
from typing import Any, ClassVar


class Stamps:
    """In place of the printer of tokens, which is given the prompt first and then each token."""

    times: ClassVar[list[float]] = []

    def __init__(self, *given: object, **named: object) -> None:
        del given, named

    def put(self, tokens: object) -> None:
        del tokens
        self.times.append(time.perf_counter())

    def end(self) -> None:
        start, *tokens = self.times
        sys.stdout.write(json.dumps({"token_s": [at - start for at in tokens]}) + "\n")


def split(path: str, devices: int) -> None:
    cut = importlib.import_module("tpi_llm.split").split_pretrained_model
    cut(path, devices, [1.0 / devices] * devices, f"split-{devices}")


def generate(words: list[str]) -> None:
    path, rank, devices, master, port, file_port, prompt, new = words
    example: Any = importlib.import_module("run_llama")
    importlib.import_module("torch").set_num_threads(1)
    connections: Any = importlib.import_module("tpi_llm.distributed.comm")
    connections.connect_with_retry = functools.partial(connections.connect_with_retry, max_retry=600)
    example.TextStreamer = Stamps
    model_class = example.TPILlamaForCausalLM
    model_class.generate = _after_loading(model_class.generate)
    example.main(
        int(rank),
        argparse.Namespace(
            model_type="llama",
            model_path=path,
            rank=int(rank),
            world_size=int(devices),
            master_ip=master,
            master_port=int(port),
            file_port=int(file_port),
            force_download=False,
            prompt=" ".join(str(100 + number) for number in range(int(prompt))),
            prefix="",
            length=int(new),
            use_gpu=False,
            torch_dist=False,
            split_bin=False,
            save_dir=f"split-{devices}",
            seed=42,
            temperature=1.0,
            k=0,
            p=0.9,
            disable_memory_schedule=True,
            memory_window=2,
        ),
    )


def _after_loading(original: Any) -> Any:
    """Generating that starts when all devices have all weights."""

    @functools.wraps(original)
    def loaded(self: Any, *given: Any, **named: Any) -> Any:
        self.mem_manager.start()
        while not self.mem_manager._batch_loaded:
            time.sleep(0.1)
        named["communicator"].barrier()
        return original(self, *given, **named)

    return loaded


def main() -> None:
    verb, *words = sys.argv[1:]
    if verb == "split":
        split(words[0], int(words[1]))
    else:
        generate(words)


if __name__ == "__main__":
    main()
