"""The `deqflow` program: thin commands over `deqflow.config` and `deqflow.train`."""

import argparse
import gc
import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deqflow
from deqflow.machine.signals import exit_at_once
from deqflow.registry import UserError, resolve

# What a command needs is imported when it runs, so that `--help` and a mistake in a config answer at once.

_TRAIN = {
    *("array_record", "grain", "importlib_resources", "matplotlib", "orbax", "PIL", "pydantic", "rich", "ruamel", "sklearn"),
    *("tensorboardX", "tensorflow_datasets"),
}
"""The packages that come with `deqflow[train]`, by the names they are imported under."""

_EXAMPLES = """examples:
  deqflow train configs/digits_deq.yaml
  deqflow train configs/digits_deq.yaml model.solver.rtol=1e-3 train.steps=500 --run runs/loose
  deqflow train configs/digits_deq.yaml --run runs/loose --resume
  deqflow eval runs/digits_deq
  deqflow sample runs/checkerboard_realnvp -n 1000
  deqflow sample runs/shakespeare_deq -n 4 --length 500
  deqflow check configs/digits_realnvp.yaml
  deqflow bench memory configs/digits_deq.yaml --steps 10,100 --methods implicit,unrolled --out memory.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the user can mend, 130 after ctrl-C."""
    gc.set_threshold(50_000)  # modules and traces are made of many objects that stay; Python would look through them every 700 of them
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(parsed, "overrides") and all("=" in word and not word.startswith("-") for word in rest)):
        parser.error(
            f"unknown argument{'s' if len(rest) > 1 else ''}: {' '.join(rest)}; `deqflow {parsed.command} --help` shows what there is"
        )
    if rest:  # overrides that stand behind an option
        parsed.overrides = [*parsed.overrides, *rest]
    try:
        with exit_at_once():
            code = parsed.function(parsed)
            sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAIN:
            raise
        print(f"error: `deqflow {parsed.command}` needs the package {package}: pip install 'deqflow[train]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough; what is left must not be written when Python ends either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deqflow",
        description="Train, evaluate and inspect implicit models: deep equilibrium models and normalizing flows.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"deqflow {deqflow.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: Any, summary: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(function=function)
        return sub

    def takes_config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("config", metavar="CONFIG", help="a YAML file, such as those in configs/")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="change the config: model.solver.rtol=1e-4")

    def takes_run(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("run", metavar="RUN", help="a run directory, made by `deqflow train`")
        sub.add_argument("--step", type=int, help="the checkpoint to use (default: the one that the run selects, best or last)")

    sub = command(
        "train",
        _train,
        "train a model from a config",
        "Train what CONFIG describes; evaluate it on the test split; draw its pictures. Ctrl-C saves a checkpoint and exits with 130.",
    )
    takes_config(sub)
    sub.add_argument("--run", metavar="DIR", help="the run directory to make (default: runs/NAME of the config, numbered if taken)")
    sub.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run directory")
    sub.add_argument(
        "--allow-config-change",
        action="store_true",
        help="resume also with another config than the run was started with; it takes its place",
    )
    sub.add_argument("--quiet", action="store_true", help="show no progress, only warnings")
    sub.add_argument("--profile", action="store_true", help="record a trace of ten steps in the run directory, for TensorBoard or XProf")
    several = sub.add_argument_group("several processes, which train one model together; each is started with the same arguments")
    several.add_argument("--distributed", action="store_true", help="this is one of them; SLURM, Open MPI or a TPU pod tells which")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where no cluster tells: the address of process 0, with a free port")
    several.add_argument("--processes", type=_positive, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, metavar="I", help="which of them this one is, from 0")

    sub = command("eval", _eval, "evaluate a trained model", "Evaluate the model of RUN on one split of its data.")
    takes_run(sub)
    sub.add_argument("--split", choices=("train", "validation", "test"), default="test", help="(default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command(
        "sample",
        _sample,
        "draw from a trained density or language model",
        "Draw samples from the density model of RUN and save them with a picture, or save texts that its language model writes.",
    )
    takes_run(sub)
    sub.add_argument("-n", type=_positive, default=64, metavar="N", help="how many (default: %(default)s)")
    sub.add_argument("--seed", type=_seed, default=0, help="of the random numbers (default: %(default)s)")
    sub.add_argument("--length", type=_positive, default=256, metavar="TOKENS", help="of a language model's texts (default: %(default)s)")
    sub.add_argument(
        "--out", metavar="FILE", help="the .npy file to write, with a .png beside it, or .txt (default: RUN/samples.npy or .txt)"
    )

    sub = command(
        "check",
        _check,
        "size up a config without training",
        "Build the model of CONFIG in the abstract and compile its training step: parameters, FLOPs, memory. Reads no data.",
    )
    takes_config(sub)

    sub = command("bench", _bench, "measure a model of your own", "Measure what the model of a config costs.")
    studies = sub.add_subparsers(dest="study", required=True, metavar="STUDY")
    sub = studies.add_parser(
        "memory",
        help="implicit against unrolled and other gradients",
        description="Memory, time and error of the gradient that trains the model of CONFIG, by every method and number of solver steps. "
        "The batch is random; no data are read.",
    )
    takes_config(sub)
    sub.add_argument(
        "--steps", type=_counts, default=(10, 100, 1000), metavar="N,N,...", help="numbers of solver steps (default: 10,100,1000)"
    )
    sub.add_argument("--methods", metavar="NAME,NAME,...", help="what to compare (default: all that there are)")
    sub.add_argument("--solver", default="picard", metavar="KIND", help="takes the steps; see `deqflow list` (default: %(default)s)")
    sub.add_argument("--limit", type=_gibibytes, metavar="GIB", help="do not run what takes more memory (default: what is free)")
    sub.add_argument("--out", metavar="FILE", help="the .json file to write, with a .png beside it")
    sub.add_argument("--plot", metavar="FILE", help="the picture to draw, .png, .pdf or .svg")

    command("list", _list, "the components that a config may name", "List the components that a config may name, by family.")
    command("schema", _schema, "the JSON schema of a config", "Print the JSON schema of a config, for editors.")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 2^31 - 1, got {text}")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2^32 - 1, got {text}")
    return number


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers from 1 on with commas between them, such as 10,100, got {text!r}")
    return counts


def _gibibytes(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of GiB above 0, got {text}")
    return number * 2**30


def _train(arguments: argparse.Namespace) -> int:
    from deqflow.config import load

    config = load(arguments.config, arguments.overrides)  # before anything heavy is imported
    if not arguments.quiet and sys.stderr.isatty():
        print("loading JAX ...", file=sys.stderr)
    from deqflow.machine.compiled import keep_compiled_programs
    from deqflow.machine.processes import is_first, join
    from deqflow.train import run

    keep_compiled_programs()
    if arguments.allow_config_change and not arguments.resume:
        raise UserError("--allow-config-change is for --resume: a new run has no config that could change")
    where = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.distributed or where != (None, None, None):
        join(*where)
    result = run(
        config,
        arguments.run,
        resume=arguments.resume,
        allow_config_change=arguments.allow_config_change,
        profile=arguments.profile,
        quiet=arguments.quiet,
    )
    if not is_first():
        return 0 if result.interrupted is None else 128 + result.interrupted
    if result.interrupted is not None:
        words = ["deqflow", "train", arguments.config, *arguments.overrides, "--run", str(result.directory), "--resume"]
        if result.step:
            how = f"interrupted after step {result.step}, which is saved; go on with: {shlex.join(words)}"
        elif result.directory.exists():  # a run that was resumed before its first checkpoint
            how = f"interrupted before the first step; go on with: {shlex.join(words)}"
        else:
            how = "interrupted before the first step; nothing was saved"
        print(how, file=sys.stderr)
        return 128 + result.interrupted
    print(_numbers(result.test, "test"))
    if result.seconds:
        selected = "" if result.selected_step == result.step else f", step {result.selected_step} selected"
        print(f"trained {result.step} steps in {result.seconds:.1f} s, compilation included{selected}")
    print(f"run directory: {result.directory}")
    if result.pictures:
        print("\n".join(["pictures:", *(f"  {picture}" for picture in result.pictures)]))
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from deqflow.train import SavedRun

    run = SavedRun.open(arguments.run, arguments.step)
    numbers = run.evaluate(arguments.split)
    if arguments.json:
        print(json.dumps({"step": run.step, "split": arguments.split, **numbers}))
    else:
        print(_numbers(numbers, arguments.split))
        print(f"step {run.step} of {arguments.run}")
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from deqflow.train import SavedRun

    run = SavedRun.open(arguments.run, arguments.step)
    out = Path(arguments.out) if arguments.out else Path(arguments.run) / "samples.npy"
    for path in run.save_samples(out, arguments.n, arguments.seed, arguments.length):
        print(path)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from deqflow.config import load

    config = load(arguments.config, arguments.overrides)
    from rich.console import Console
    from rich.table import Column, Table

    from deqflow.bench import check
    from deqflow.bench.table import size_in_words

    report = check(config)
    table = Table(Column("parameter", overflow="fold"), "shape", "type", Column("count", justify="right"))
    for name, (shape, dtype) in report.parameters.items():
        table.add_row(name, " x ".join(map(str, shape)) or "scalar", dtype, f"{_product(shape):,}")
    console = Console()
    console.print(table)
    console.print(f"parameters: {report.count:,}", highlight=False)
    console.print("batch: " + ", ".join(f"{name} {text}" for name, text in report.batch.items()), highlight=False, markup=False)
    loops = "" if report.work.exact else " (a solver's loop counts as one iteration)"
    console.print(f"FLOPs of a training step in matrix products: {report.work.flops:.4g}{loops}", highlight=False)
    console.print(f"memory of the state: {size_in_words(report.state_bytes)}", highlight=False)
    if report.temporary_bytes is not None:
        console.print(f"memory of a training step besides: {size_in_words(report.temporary_bytes)}", highlight=False)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from deqflow.config import load

    config = load(arguments.config, arguments.overrides)
    out = None if arguments.out is None else _writable(arguments.out, ".json")
    plot = arguments.plot or (out and out.with_suffix(".png"))
    plot = plot and _writable(plot, ".png", ".pdf", ".svg")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes that are measured need the accelerator's memory
    from rich.console import Console

    from deqflow.bench import METHODS, records
    from deqflow.bench.figure import draw
    from deqflow.bench.from_config import of_config
    from deqflow.bench.table import table
    from deqflow.machine.refusals import refusals_told, require_device

    methods = arguments.methods.split(",") if arguments.methods else METHODS
    solver = resolve("solver", arguments.solver)()
    require_device()
    rows = []
    with refusals_told("cannot measure", "lower data.batch_size, or make the model smaller"):
        for record in records(of_config(config), steps=arguments.steps, methods=methods, solver=solver, limit=arguments.limit):
            rows.append(record)
            if sys.stderr.isatty():
                print(f"{record['method']}, {record['steps']} steps: {record['status']}", file=sys.stderr)
            if out:  # after every row, as there may be none for minutes
                out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    Console().print(table(rows))
    if plot:
        draw({Path(arguments.config).stem: rows}).savefig(plot, dpi=200)
    for path in filter(None, (out, plot)):
        print(path)
    return 0


def _writable(name: str | Path, *suffixes: str) -> Path:
    """The path of a file that is to be written, or an error before the work begins."""
    path = Path(name)
    if path.suffix not in suffixes:
        raise UserError(f"cannot write {path}: expected a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'no permission'}")
    return path


def _list(arguments: argparse.Namespace) -> int:
    from deqflow.config import components
    from deqflow.registry import families

    summaries = families()
    for family, entries in components().items():
        print(f"{family}: {summaries[family]}")
        width = max(len(kind) for kind, _ in entries)
        print("\n".join(f"  {kind:{width}}  {text}" for kind, text in entries))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from deqflow.config import schema

    print(json.dumps(schema(), indent=2))
    return 0


def _numbers(numbers: dict[str, float], split: str) -> str:
    """The first number, which the task holds for the most telling, on a line of its own; the rest behind it in brackets."""
    (first, value), *others = numbers.items()
    rest = ", ".join(f"{name} {number:.4g}" for name, number in others)
    return f"{split} {first}: {value:.4f}" + (f" ({rest})" if rest else "")


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
