"""The command line: commands, and how failures are shown."""

import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from weft.cli import (
    bench,
    compile_model,
    configuration,
    demonstration,
    diverge,
    doctor,
    estimate,
    evaluate_model,
    observation,
    run_model,
    synthesis,
    train_model,
)
from weft_hw.errors import WeftError

__all__ = ["application", "main"]

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 141  # as a shell has it: 128 and the number of SIGPIPE
INTERRUPTED = 130  # as a shell has it: 128 and the number of SIGINT

application = typer.Typer(
    name="weft",
    help="Low-bitwidth neural networks on a parameterizable systolic-array accelerator.\n\n"
    "Every command takes --debug, which shows the traceback of a failure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
application.command("demo")(demonstration.demo)
application.command("compile")(compile_model.compile_command)
application.command("run")(run_model.run)
application.command("eval")(evaluate_model.evaluate_command)
application.command("train")(train_model.train_command)
application.command("estimate")(estimate.estimate)
application.command("diverge")(diverge.diverge)
application.command("disasm")(observation.disasm)
application.command("verilog")(configuration.verilog)
application.command("config")(configuration.config)
application.command("doctor")(doctor.doctor)
application.command("synth")(synthesis.synth)
application.add_typer(bench.application, name="bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    A :class:`WeftError` is printed as one line and gives status 1, a misuse of the command line
    gives 2, an internal error 70. With ``--debug`` anywhere, the exception itself is raised.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        application(words)
        return 0
    except SystemExit as finished:  # how typer reports success, misuse and interruption
        return finished.code if isinstance(finished.code, int) else int(bool(finished.code))
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        console.print("interrupted")
        return INTERRUPTED
    except WeftError as error:
        if debug:
            raise
        console.print("error: ", style="bold red", end="")
        console.print(str(error), markup=False)
        return 1
    except Exception as error:
        if debug:
            raise
        console.print("internal error: ", style="bold red", end="")
        console.print(
            f"{type(error).__name__}: {error} (please report it with the output of the same "
            "command and --debug)",
            markup=False,
        )
        return INTERNAL_ERROR
