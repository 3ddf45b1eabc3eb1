"""`python -m llcompile`."""

from llcompile.cli import main

main(prog_name="llcompile")
