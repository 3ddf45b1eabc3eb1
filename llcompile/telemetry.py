"""What libraries tell their makers, switched off: a compiler of your model on your machine reports to nobody."""

from __future__ import annotations

import os
from collections.abc import Mapping

# onnxruntime (which onnxsim imports where it is installed) reads its switch once, as it is loaded: it then looks up
# a host of its maker's and keeps a device id and a session in files. Hugging Face's libraries read the next two as
# they are imported, and the last is what any tool may ask (https://consoledonottrack.com).
OFF: Mapping[str, str] = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def switch_off() -> None:
    """Set every switch for this process and those it starts; to be called before such a library is imported."""
    os.environ.update(OFF)
