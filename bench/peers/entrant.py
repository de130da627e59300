"""What a program that trains must tell so that it can be started, fed and timed; and a peer as such a program."""

import hashlib
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hardware import Device
from optim_ladder import Workload

GPT2_VOCAB_SIZE = 50257
STDOUT = "stdout"  # the file that a process's standard output goes to
NEVER = 10**9  # steps
SPARE_STEPS = 100  # for the first step and the warm-up; the process is ended when enough is known


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every entrant is asked to train.

    Args:
        device: where; "cuda" or "cpu".
        workload: model, micro-batch and sequence length; no accumulation, one process.
        num_steps: how many are timed.
        tokens: (num_tokens,) uint16, of GPT-2's encoding.
    """

    device: Device
    workload: Workload
    num_steps: int
    tokens: np.ndarray

    @property
    def most_steps(self) -> int:
        """How many it must be ready to take; should nobody end it, it ends by itself."""
        return self.num_steps + SPARE_STEPS


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One program in a comparison.

    Args:
        title, source: its name and where it can be had.
        arguments: of the Python interpreter, in a working folder of its own.
        prepare: fills that folder: code, tokens.
        step_ms: a line of the log -> milliseconds of one optimizer step, or None if it is about something else.
        log: which file of the folder to read.
        environment: variables beside the usual ones.
        commit, dirty, files_sha256, changes, notes: see `results.peers.Entrant`.
    """

    title: str
    source: str
    arguments: list[str]
    prepare: Callable[[Path], None]
    step_ms: Callable[[str], float | None]
    log: str = STDOUT
    environment: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None
    files_sha256: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another project's trainer.

    Args:
        title, source: its name and where it can be had.
        files: that a run needs, below its checkout; the first is the program.
        step_line: matches the line it prints at each step; group 1 is the milliseconds.
        arguments: its command line for a task.
        write_tokens: (folder, tokens) puts the text where the program looks for it.
        edits: pattern -> replacement, for constants of the program that its command line does not offer.
        stand_ins: name -> content of modules that it imports and a training step does not use.
        notes: in which its step differs from ours.
        on_a_processor: the same, where there is no GPU.
    """

    title: str
    source: str
    files: tuple[str, ...]
    step_line: re.Pattern[str]
    arguments: Callable[[Task], list[str]]
    write_tokens: Callable[[Path, np.ndarray], None]
    edits: Callable[[Task], Mapping[str, str]] = lambda task: {}
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    on_a_processor: str = "fp32"

    def entrant(self, checkout: Path, task: Task) -> Entrant:
        """This peer from a checkout, for a task.

        Raises:
            ValueError: the folder is not a checkout of it, or of a version that is not known here.
        """
        program, remedy = self.files[0], f"give a checkout of {self.source}"
        try:
            content = {name: (checkout / name).read_bytes() for name in self.files}
            sources = {name: text.decode() for name, text in content.items()}
        except OSError as error:
            lacking = Path(error.filename).relative_to(checkout)
            raise ValueError(f"{checkout} is not {self.title}: it has no {lacking}; {remedy}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{checkout} is not {self.title}: its program is no text; {remedy}") from None
        arguments = self.arguments(task)
        for option in (argument.partition("=")[0].removeprefix("--") for argument in arguments):
            if not re.search(rf'^{option} = |"--{option}"', sources[program], flags=re.MULTILINE):
                raise ValueError(
                    f"{checkout / program} has no option {option!r}: it is not {self.title}, or of another version than "
                    f"this comparison knows; {remedy}"
                )
        edits = self.edits(task)
        for pattern, replacement in edits.items():
            sources[program], count = re.subn(pattern, lambda _: replacement, sources[program], flags=re.MULTILINE)
            if count != 1:
                raise ValueError(
                    f"{checkout / program} has {count} places that match {pattern!r}, not 1: it is of another version "
                    f"than this comparison knows; check out an earlier one of {self.source}"
                )

        def prepare(folder: Path) -> None:
            for name, text in {**sources, **self.stand_ins}.items():
                (folder / name).write_bytes(text.encode())
            self.write_tokens(folder, task.tokens)

        return Entrant(
            title=self.title,
            source=self.source,
            arguments=[program, *arguments],
            prepare=prepare,
            step_ms=self.step_ms,
            commit=commit_of(checkout),
            dirty=is_changed(checkout, self.files),
            files_sha256={name: hashlib.sha256(text).hexdigest() for name, text in content.items()},
            changes=list(edits.values()),
            notes=[*self.notes, *([self.on_a_processor] if task.device.kind == "cpu" else [])],
        )

    def step_ms(self, line: str) -> float | None:
        """Milliseconds of the step that a line is about, None if it is about none."""
        match = self.step_line.search(line)
        return float(match[1]) if match else None


def commit_of(checkout: Path) -> str | None:
    """The commit that is checked out, read from git's own files: the machine with the GPU may have no git."""
    git = checkout / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            if (git / name).exists():
                head = (git / name).read_text().strip()
            else:
                packed = (git / "packed-refs").read_text()
                head = next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {name}")), "")
    except OSError:
        return None
    return head if re.fullmatch(r"[0-9a-f]{40}", head) else None


def is_changed(checkout: Path, files: Sequence[str]) -> bool | None:
    """Whether files differ from the commit that is checked out; None where nobody can tell: no repository, or no git."""
    if not (checkout / ".git").exists():  # git would look further up, and find another one
        return None
    git = ["git", "--no-optional-locks", "-c", "safe.directory=*", "-C", str(checkout)]
    command = [*git, "diff", "--quiet", "HEAD", "--", *files]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {0: False, 1: True}.get(done.returncode)
