"""`python -m llrun`."""

from llrun.cli import main

main()
