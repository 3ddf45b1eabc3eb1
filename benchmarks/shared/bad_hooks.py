"""Functions for llrun --rebalance that no runtime should suffer from, as sources of files, by name."""

_BEFORE = "def rebalance(view):\n    stage = type(view.stages[0]).on\n    stages = list(view.stages)\n"
_LATE = (
    "def rebalance(view):\n    def later():\n        yield view.stages[0]\n        raise KeyError('late')\n"
)
_LAST = "stages[-1].blocks[1]"

HOOKS = {
    "raises": "def rebalance(view):\n    raise ValueError('no idea')\n",
    "exits": "import sys\ndef rebalance(view):\n    sys.exit(3)\n",
    "sleeps": "import time\ndef rebalance(view):\n    time.sleep(1e6)\n",
    "spins": "def rebalance(view):\n    while True:\n        pass\n",
    "text": "def rebalance(view):\n    return 'everything to the phone'\n",
    "number": "def rebalance(view):\n    return 7\n",
    "list-of-none": "def rebalance(view):\n    return [None, None]\n",
    "raises-late": f"{_LATE}    return later()\n",
    "nothing-at-all": "def rebalance(view):\n    return []\n",
    "unknown-device": f"{_BEFORE}    return [*stages[:1], stage('nobody', *stages[1].blocks), *stages[2:]]\n",
    "blocks-left-out": f"{_BEFORE}    return [stages[0], stages[-1]]\n",
    "blocks-twice": f"{_BEFORE}    return [*stages, stages[-1]]\n",
    "beyond-the-end": f"{_BEFORE}    return [*stages[:-1], stage(stages[-1].lead, 12, {_LAST} + 5)]\n",
    "head-without-the-first": f"{_BEFORE}    return [stage(stages[1].lead, 0, {_LAST} - 1), stages[-1]]\n",
    "head-without-the-last": f"{_BEFORE}    return [*stages[:-1], stage(stages[1].lead, *stages[-1].blocks)]\n",
    "negative": f"{_BEFORE}    return [stage(stages[0].lead, -3, {_LAST})]\n",
}
