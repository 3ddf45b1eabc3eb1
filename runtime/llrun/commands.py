"""Commands that look at what there is and run nothing of a model: doctor, ps. Options in, exit code out."""

from __future__ import annotations

import click

from llrun.errors import RunError
from llrun.options import local_and_peers, peers_of, positive

SETTINGS = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
DOCTOR_EXAMPLES = """
\b
Examples:
  llrun doctor pi/                                   on a worker: its own slice, port, and links to other workers
  llrun doctor bundle/                               on the head: the same, and links to all workers that listen
  llrun doctor bundle/ --local                       may every device run on this machine?
  llrun doctor pi/ --verify --json                   compare every byte of its files; one JSON object

Links are measured with some megabytes to each worker that listens, one after the other, whatever it does meanwhile.
Exit codes: 0 nothing failed, 1 something did, 2 wrong use.
"""


@click.command(epilog=DOCTOR_EXAMPLES, context_settings=SETTINGS)
@click.argument("path", metavar="BUNDLE_OR_SLICE")
@click.option("--device", metavar="NAME", help="Which device this is; without it, the head.")
@click.option(
    "--listen", metavar="HOST:PORT", help="Worker: it listens here instead of the bundle's address."
)
@click.option("--verify", is_flag=True, help="Hash every file; else their sizes are compared.")
@click.option(
    "--timeout",
    type=float,
    default=3.0,
    show_default=True,
    metavar="S",
    help="How long to wait for each device to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@local_and_peers
def doctor(path: str, device: str | None, listen: str | None, verify: bool, timeout: float, as_json: bool,
           local: bool, peers: tuple[str, ...]) -> int:  # fmt: skip
    """Say what keeps a device from running its part, or slows it, and what to do about it."""
    from pathlib import Path

    from llrun.device.slice import find
    from llrun.faces.console import Console
    from llrun.faces.doctor import doctor as doctors
    from llrun.wire.transport import Tcp

    asked = doctors.Asked(local, listen, peers_of(peers), verify, positive(timeout, "--timeout"), Tcp())
    console = Console(quiet=as_json)
    try:
        stored = find(Path(path), device)
    except RunError as error:
        if error.code != "R202":
            raise
        checks = [doctors.broken(error)]
    else:
        checks = doctors.examine(stored, asked)
    if as_json:
        console.json(doctors.as_json(checks))
    else:
        console.table("\n".join(doctors.as_lines(checks)))
    return doctors.exit_code(checks)


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
