"""What people read of a plan: words and tables at a terminal, a page and start files in a bundle.

- print_plan, plan_text: a plan in words and tables, as wide as the terminal
- read_measured: what a run measured; predict: what the plan says of that run; comparison_json: both, as plain values
- pages: the report page and the files that start each device, from templates/
- human_bytes, human_seconds: figures as people read them
"""

from llcompile.explain.measured import Measured, comparison_json, predict, read_measured
from llcompile.explain.pages import pages
from llcompile.explain.sizes import human_bytes, human_seconds
from llcompile.explain.tables import plan_text, print_plan

__all__ = [
    "Measured",
    "comparison_json",
    "human_bytes",
    "human_seconds",
    "pages",
    "plan_text",
    "predict",
    "print_plan",
    "read_measured",
]
