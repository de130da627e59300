"""Joins the commands, and turns every expected error into one line and exit code 2.

Commands import what they need when they run: `plot` and `compare` work where torch is not installed.
"""

import difflib
import os
import re
import sys
import time
from collections.abc import Sequence

import typer

from stepladder.compare import compare
from stepladder.ladder import ladder
from stepladder.plot import plot
from stepladder.prepare import prepare
from stepladder.tokenizer import app as tokenizer
from stepladder.train import train
from stepladder.tune import tune

COMMANDS = {
    "ladder": ladder, "prepare": prepare, "tune": tune, "train": train, "plot": plot, "compare": compare,
}  # fmt: skip
GRACE_S = 5.0  # for the process that has something to say
GROUPS = {"tokenizer": tokenizer}
# Arguments of the form --no-RUNG are read by the command itself.
PASSED_ON = {"train": {"allow_extra_args": True, "ignore_unknown_options": True}}

app = typer.Typer(
    name="stepladder",
    help="One GPT-2, one ladder of optimizations, every step measured. To measure: pytest --benchmark.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, command in COMMANDS.items():
    app.command(name, context_settings=PASSED_ON.get(name))(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: instead of the process's own.

    Returns:
        The exit code: 0, or 2 after an error the user can mend.
    """
    try:
        code = app(None if arguments is None else list(arguments), prog_name="stepladder", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `stepladder … | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if getattr(error, "relayed", False):  # the process that met it says it; torchrun ends all when the first one leaves
            time.sleep(GRACE_S)
            return 2
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Usage errors; their class lives in click or in typer, depending on typer's version.
        if not hasattr(error, "format_message"):
            raise
        return fail(error.format_message())


def fail(message: str) -> int:
    one_line = " ".join(message.split())
    if match := re.match(r"No such command '(.*?)'", one_line):
        known = [*COMMANDS, *GROUPS]
        near = difflib.get_close_matches(match[1], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        one_line = f"unknown command {match[1]!r}: {hint}choose from {', '.join(known)}"
    print(f"error: {one_line}", file=sys.stderr)
    return 2
