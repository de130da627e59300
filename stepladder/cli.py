"""Joins the commands, and turns every expected error into one line and exit code 2.

Commands import what they need when they run: `plot` and `compare` work where torch is not installed.
"""

import difflib
import io
import os
import re
import sys
import time
from collections.abc import Collection, Sequence

import typer

from results.store import REASONS
from stepladder.clean import clean
from stepladder.compare import compare
from stepladder.convert import convert
from stepladder.eval import app as evaluate
from stepladder.ladder import ladder
from stepladder.peers import peers
from stepladder.plot import plot
from stepladder.prepare import prepare
from stepladder.profile import profile
from stepladder.sample import sample
from stepladder.tokenizer import app as tokenizer
from stepladder.train import train
from stepladder.tune import tune

COMMANDS = {
    "ladder": ladder, "prepare": prepare, "tune": tune, "profile": profile, "peers": peers, "train": train, "sample": sample, "plot": plot,
    "compare": compare, "convert": convert, "clean": clean,
}  # fmt: skip
GRACE_S = 5.0  # for the process that has something to say
GROUPS = {"tokenizer": tokenizer, "eval": evaluate}
# Arguments of the form --no-RUNG are read by the command itself.
PASSED_ON = dict.fromkeys(("train", "sample", "profile"), {"allow_extra_args": True, "ignore_unknown_options": True})

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
    open_streams()
    try:
        code = app(None if arguments is None else list(arguments), prog_name="stepladder", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, SystemExit) as error:  # `stepladder … | head` has seen enough; typer exits with 1 then
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if getattr(error, "relayed", False):  # the process that met it says it; torchrun ends all when the first one leaves
            time.sleep(GRACE_S)
            return 2
        return fail(words(error))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # as older versions of typer tell it
            return 130
        # Usage errors; their class lives in click or in typer, depending on typer's version.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # empty where no command was given: the help is on the screen already
        group = getattr(getattr(error, "ctx", None), "command", None)
        return fail(message, getattr(group, "commands", ())) if message else 2


def open_streams() -> None:
    """What was closed before the start is empty, or leads nowhere; a character that a terminal lacks becomes its code,
    so that no result is lost for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def words(error: ValueError | OSError) -> str:
    """An error's message; that of a file, which Python words for programmers, with its reason and remedy."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        reason, remedy = REASONS.get(error.errno, (error.strerror.lower(), "give another path"))
        return f"{os.fsdecode(error.filename)}: {reason}; {remedy}"
    return str(error)


def fail(message: str, known: Collection[str] = ()) -> int:
    """Says what is wrong, and instead of a command that does not exist those that do."""
    one_line = " ".join(message.split())
    if match := re.match(r"No such command '(.*?)'", one_line):
        near = difflib.get_close_matches(match[1], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        one_line = f"unknown command {match[1]!r}: {hint}choose from {', '.join(known)}"
    print(f"error: {one_line}", file=sys.stderr)
    return 2
