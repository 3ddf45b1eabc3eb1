"""Commands that look at what there is and run nothing of a model: doctor, ps. Options in, exit code out."""

from __future__ import annotations

import click

SETTINGS = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}


@click.command(context_settings=SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
def ps(as_json: bool) -> None:
    """List your running processes of llrun on this machine."""
    from llrun.faces.console import Console
    from llrun.faces.processes import listing

    found, console = listing.processes(), Console(quiet=as_json)
    if as_json:
        console.json(listing.as_json(found))
    else:
        console.table(listing.as_table(found) if found else "no llrun of yours runs on this machine")
