"""The llcompile command line: arguments in, exit codes out; no logic."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.trace import STAGES, Stop, Stopped, Trace

if TYPE_CHECKING:
    from llcompile.console import Console
    from llcompile.pipeline import BuildOptions

EPILOG = {
    "build": """\b
Examples:
  llcompile build TinyLlama/TinyLlama-1.1B-Chat-v1.0 --target devices.json -o bundle/
  llcompile build ./my-model --target devices.json --quant q8 --context 2048
  llcompile build ./my-model --target devices.json --calibrate letters.txt
  llcompile build ./config-only --target devices.json --random-weights 1 --use-all --pin 3:7=pi""",
    "plan": """\b
Examples:
  llcompile plan ./my-model --target devices.json
  llcompile plan ./my-model --target devices.json --keep 2
  llcompile plan ./my-model --target devices.json --tensor-parallel 4
  llcompile plan ./config-only --target devices.json --random-weights 1 --json | jq .tpot_s""",
    "explain": """\b
Example:
  llcompile explain bundle/
  llrun bundle/ --prompt 'def ' --json > run.json; llcompile explain bundle/ --measured run.json""",
    "pass": """\b
Examples:
  llcompile pass rotary-embeddings ./my-model
  llcompile plan ./my-model --target devices.json --dump-dir dump/
  llcompile pass rotary-embeddings dump/10-root-mean-square-norms.onnx
  llcompile pass products-to-linear product.onnxtxt --weight w""",
    "verify": """\b
Example:
  llcompile verify bundle/ && rsync -a bundle/devices/pi/ pi:llm/""",
}


class Shell(click.Group):
    """Turns known failures into one line on stderr and the exit code of the contract."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CompileError as error:
            click.echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except Stopped as stopped:
            click.echo(stopped.after, nl=False)
        except BrokenPipeError:
            raise  # whoever read our output has gone: click ends quietly
        except OSError as error:
            click.echo(f"error[E103]: {error.filename or 'the system'}: {error.strerror}", err=True)
            ctx.exit(INTERNAL)


@click.group(cls=Shell, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llcompile")
def main() -> None:
    """Compile one language model for several small, unequal devices.

    Exit codes: 0 done; 2 wrong use or input; 3 no feasible plan; 1 anything else.
    """


def planning(command: Any) -> Any:
    """The options that `build` and `plan` share."""
    options = [
        click.argument("model"),
        click.option("--target", required=True, type=click.Path(path_type=Path), help="devices.json"),
        click.option("--quant", type=click.Choice(["q4", "q5", "q6", "q8", "f16", "f32"]), default="q4",
                     show_default=True, help="How weights are stored and read."),
        click.option("--bits", type=click.FloatRange(4.5, 8.5), metavar="4.5..8.5",
                     help="Bits of a weight on the average, scales included: the format of each matrix is chosen by "
                     "what rounding it is measured to cost the output."),
        click.option("--cache", type=click.Choice(["f16", "q8"]), default="f16", show_default=True,
                     help="How keys and values are kept; always f32 with --quant f32."),
        click.option("--wire", type=click.Choice(["auto", "f32", "f16", "q8", "q4"]), default="auto", show_default=True,
                     help="How activations travel between devices. auto: f32, which changes nothing; f16 where that "
                     "shortens the time to the first or to a further token by over 1 %; q8 where it does by over 5 %."),
        click.option("--context", type=click.IntRange(min=1),
                     help="Tokens a sequence may hold.  [default: what the model was made for, at most 4096]"),
        click.option(
            "--objective",
            type=click.Choice(["latency", "throughput"]),
            default="latency",
            show_default=True,
            help="One user's wait, or tokens a second of several at once.",
        ),
        click.option("--prompt-tokens", type=click.IntRange(min=1),
                     help="Prompt of the request that the plan is for.  [default: 512, less in a smaller context]"),
        click.option("--new-tokens", type=click.IntRange(min=1),
                     help="Tokens that the request asks for.  [default: 128, less in a smaller context]"),
        click.option("--sequences", type=click.IntRange(1, 64), default=8, show_default=True,
                     help="Sequences at once that --objective throughput plans for."),
        click.option("--time-limit", type=float, default=10.0, show_default=True, metavar="S",
                     help="Seconds that planning may take. Where they run out, another run may give another plan."),
        click.option("--use-all", is_flag=True, help="Give every device at least one block of its own."),
        click.option("--spare", type=click.Choice(["auto", "none", "all"]), default="auto", show_default=True,
                     help="Blocks that a device holds on disk besides those it runs: what best answers a lost or slow "
                     "device, none, or all that fit. A device on standby holds all that fit."),
        click.option("--keep", type=click.IntRange(min=0), default=0, show_default=True, metavar="K",
                     help="The first and last K layers stay on the head too, in every move as well: other devices see "
                     "less. A layer begins at a block with a cache and ends before the next."),
        click.option("--tensor-parallel", default="auto", show_default=True, metavar="auto|off|N",
                     help="Groups of devices that compute each block together: where that is faster, none, or one of "
                     "N devices that has every block but the head's."),
        click.option("--window", default="auto", show_default=True, metavar="auto|off|N",
                     help="Blocks of a device in memory at once, the others streaming from its disk for each token: "
                     "as many as fit where the model fits on no devices whole, no streaming, or N."),
        click.option("--pin", "pins", multiple=True, metavar="A:B=DEVICE", help="Blocks A to B-1 on DEVICE."),
        click.option("--random-weights", "random_seed", type=click.IntRange(min=0), metavar="SEED",
                     help="Draw the weights; MODEL needs a config.json alone."),
        click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="cores",
                     help="Threads that pack weights."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout."),
        click.option("--dump-dir", type=click.Path(path_type=Path, file_okay=False),
                     help="Write the program after every pass here, as NN-pass.txt and NN-pass.onnx."),
        click.option("--stop-after", metavar="PASS",
                     help="End after this pass and print the program; `llcompile passes` lists them."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command(epilog=EPILOG["build"])
@planning
@click.option(
    "--calibrate",
    default="random",
    show_default=True,
    metavar="random|none|FILE",
    help="What fewer than 8 bits are rounded for: activations on random tokens, or on FILE, a UTF-8 text like "
    "those the model will see; none: each weight by itself.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bundle"),
    show_default=True,
    help="Where the bundle goes; an older one there is replaced.",
)
def build(
    output: Path, as_json: bool, dump_dir: Path | None, stop_after: str | None, **arguments: Any
) -> None:
    """Build MODEL (a Hugging Face directory, a GGUF file or a hub id) into a bundle for the devices of --target."""
    from llcompile import bundle, console, explain, pipeline

    options, stop = options_of(arguments), stop_of(stop_after, as_json)
    with console.Console() as screen:
        planned = pipeline.build(options, output, trace_of(screen, dump_dir, stop), screen.weights_done)
        record = bundle.plan_record(planned.plan, planned.graph, planned.costs)
    if as_json:
        click.echo(json.dumps(bundle.plan_json(record) | {"bundle": str(output)}))
    else:
        explain.print_plan(record)
        click.echo(f"wrote {output}: run it with `llrun {output} --local`", err=True)


@main.command(epilog=EPILOG["plan"])
@planning
def plan(as_json: bool, dump_dir: Path | None, stop_after: str | None, **arguments: Any) -> None:
    """Plan alone: which device would compute what, and how fast. Nothing is compiled."""
    from llcompile import bundle, console, explain, pipeline

    options, stop = options_of(arguments), stop_of(stop_after, as_json)
    with console.Console() as screen:
        planned = pipeline.make_plan(options, trace_of(screen, dump_dir, stop), screen.weights_done)
        record = bundle.plan_record(planned.plan, planned.graph, planned.costs)
    if as_json:
        click.echo(json.dumps(bundle.plan_json(record)))
    else:
        explain.print_plan(record)


@main.command("explain", epilog=EPILOG["explain"])
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `llrun --json` printed, to set beside what was predicted.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def explain_bundle(path: Path, measured: Path | None, as_json: bool) -> None:
    """The plan of BUNDLE in words and a table; predicted against measured."""
    from llcompile import bundle, explain

    record = bundle.read_manifest(path).plan
    figures = explain.read_measured(measured) if measured else None
    if as_json:
        both = explain.comparison_json(record, figures) if figures else {}
        click.echo(json.dumps(bundle.plan_json(record) | both))
    else:
        explain.print_plan(record, figures)


@main.command(epilog=EPILOG["verify"])
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
def verify(path: Path) -> None:
    """Check every file of BUNDLE against its manifest."""
    from llcompile import bundle

    violations = bundle.verify(path)
    for violation in violations:
        click.echo(f"error[B140]: {violation}", err=True)
    if violations:
        sys.exit(2)
    click.echo(f"{path}: every file matches the manifest")


@main.command("passes")
def list_passes() -> None:
    """The passes in the order in which they run, and what each needs and gives."""
    from llcompile import alone

    for item in alone.passes():
        first = (item.step.__doc__ or "").partition("\n")[0]
        click.echo(f"{item.label:<26} {item.stage:<7} {first}")
        needs, gives = (", ".join(sorted(names)) for names in (item.step.requires, item.step.ensures))
        click.echo(f"{'':<35}requires {needs or 'nothing'}; ensures {gives or 'nothing'}")


@main.command("pass", epilog=EPILOG["pass"])
@click.argument("name", metavar="PASS")
@click.argument("program")
@click.option("--random-weights", "random_seed", type=click.IntRange(min=0), metavar="SEED",
              help="For a model's directory that holds a config.json alone.")  # fmt: skip
@click.option("--weight", "weights", multiple=True, metavar="INPUT",
              help="An input of a program written by hand that is a weight.")  # fmt: skip
def run_pass(name: str, program: str, random_seed: int | None, weights: tuple[str, ...]) -> None:
    """Run PASS alone and print the program before and after it.

    PROGRAM is a saved program: an .onnx file of --dump-dir, or ONNX's text form in an .onnxtxt file. Or it is a
    model's directory, GGUF file or hub id, which goes through the passes before PASS first.
    """
    from llcompile import alone

    before, after = alone.run(name, program, random_seed, weights)
    click.echo(f"{before}\n---\n\n{after}", nl=False)


def debug_level() -> int:
    """LLC_DEBUG: 1 stages and timings, 2 passes, 3 plan and costs, 4 the program after every pass."""
    text = os.environ.get("LLC_DEBUG", "0")
    if text not in ("0", "1", "2", "3", "4"):
        raise CompileError("E101", f"LLC_DEBUG is {text!r}; set it to 0, 1, 2, 3 or 4")
    return int(text)


def options_of(arguments: dict[str, Any]) -> BuildOptions:
    from llcompile.pipeline import BuildOptions

    return BuildOptions(**arguments)


def stop_of(stop_after: str | None, as_json: bool) -> Stop | None:
    if stop_after is None:
        return None
    if as_json:
        raise CompileError("E105", "--stop-after prints a program, not a plan; leave out --json")
    from llcompile import alone

    return alone.stop_after(stop_after)


def trace_of(screen: Console, dump_dir: Path | None, stop: Stop | None) -> Trace:
    # At a terminal a person waits: stages are shown there unasked.
    level = max(debug_level(), STAGES if screen.is_terminal else 0)
    return Trace(screen.line, screen.stage, level, dump_dir, stop)
