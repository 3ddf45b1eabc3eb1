"""What people read of a plan: words and tables at a terminal, a page and start files in a bundle.

- print_plan, plan_text: a plan in words and tables, as wide as the terminal
- read_measured: what a run measured, to stand beside what was predicted
- pages: the report page and the files that start each device, from templates/
- human_bytes, human_seconds: figures as people read them
"""

from llcompile.explain.measured import read_measured
from llcompile.explain.pages import pages
from llcompile.explain.sizes import human_bytes, human_seconds
from llcompile.explain.tables import plan_text, print_plan

__all__ = ["human_bytes", "human_seconds", "pages", "plan_text", "print_plan", "read_measured"]
