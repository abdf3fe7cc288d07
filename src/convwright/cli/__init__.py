"""The command line: one file a verb.

Whatever is wrong with the input ends in one line on standard error that echoes the offending values, and exit code 2.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

import convwright
from convwright.errors import ConvwrightError

_VERBS = {
    "run": "Run a network on images or arrays: print classes, write pictures.",
    "bench": "Time a network beside other runtimes, and check the answers of all.",
    "cost": "Show what each layer costs: parameters, MACs, bytes, memory.",
    "compare": "Show two networks, or a convolution and its replacement, side by side.",
    "receptive-field": "Show how much of the input each layer sees, and where it lies.",
    "explain": "Show each layer's kernel, why it was chosen, and what it costs.",
    "networks": "Show the built-in networks, and what each costs.",
    "conv": "Show what one convolution costs, and every algorithm for it.",
    "machine": "Show what this machine has, and how fast it goes at best.",
    "kinds": "Show the kinds of convolution, with formulas for what they cost.",
}


class Verbs(click.Group):
    """A group whose verbs are imported when called, and whose errors are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"convwright.cli.{module}"), module)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            if not sys.warnoptions:
                warnings.simplefilter("default", UserWarning)
            try:
                code = super().main(
                    args,
                    prog_name,
                    complete_var,
                    standalone_mode=False,
                    windows_expand_args=windows_expand_args,
                    **extra,
                )
            except click.ClickException as error:
                code = _fail(error.format_message())
            except (ConvwrightError, MemoryError) as error:
                code = _fail(str(error) or "out of memory")
            except BrokenPipeError:
                # The reader of our output has gone; leave nothing for the interpreter to flush at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = 1
            except OSError as error:
                code = _fail(describe_os_error(error))
            except (click.Abort, KeyboardInterrupt):
                code = _fail("interrupted", 130)
        sys.exit(code if isinstance(code, int) else 0)


def describe_os_error(error: OSError) -> str:
    """`name: reason`, as the system's own tools say it."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _fail(message: str, code: int = 2) -> int:
    click.echo(f"convwright: {' '.join(message.split())}", err=True)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    click.echo(f"convwright: warning: {' '.join(str(message).split())}", err=True)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    options_metavar="[--help | --version]",
    subcommand_metavar="VERB ...",
)
@click.version_option(convwright.__version__, prog_name="convwright", message="%(prog)s %(version)s")
def main() -> None:
    """Run, time and explain convolutional networks on the CPU, and single convolutions.

    MODEL is an ONNX file or the name of a built-in network. `convwright VERB --help` shows what a verb takes.

    Three environment variables count: CONVWRIGHT_ISA says what kernels may use (avx512, avx2 or generic; by default
    the best that the CPU has), CONVWRIGHT_CACHE where they are kept once compiled (a folder, or off), and
    CONVWRIGHT_CACHE_MB how much of them (256 by default).
    """
