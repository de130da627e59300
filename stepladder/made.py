"""What this project has made on the disk, told from what it has not, by names and marks that only it gives.

A run is a folder whose `.lock` a run wrote; a prepared dataset one whose name ends with a hash and that has a `.lock`;
and so on. In it, only the names in the patterns below are its own: any other file stays, and so does every link.
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stepladder.disk import OWNER, beginning, entries, held, is_file, is_folder

CONVERTED = r"config|generation_config|vocab|merges|tokenizer|tokenizer_config|stepladder_tokenizer"
CHECKPOINTS = (
    r"checkpoints/|checkpoints/(\.tmp-)?best|checkpoints/(\.(tmp|old|trash)-|suspect-)?step-\d{8,}/"
    r"(([a-z][a-z0-9_]*\.safetensors|state\.json|manifest\.json))?"
)
RUN = re.compile(
    rf"\.lock|\.launch|\.[^/]+\.\d+\.tmp|metrics\.jsonl|recipe\.toml|tokenizer\.json|loss\.(png|svg)|stacks/(rank-\d+\.txt)?"
    rf"|diverged-step-\d{{8,}}-rank-\d+\.npz|tensorboard/(events\.out\.tfevents\.[^/]+)?|{CHECKPOINTS}"
)
DATASET = re.compile(r"\.lock|dataset\.json|tokenizer\.json|(train|val)_\d{6,}\.bin|\.[^/]+\.tmp")
STACKS = re.compile(r"rank-\d+\.txt")
CONVERSION = re.compile(rf"model\.safetensors|({CONVERTED})\.(json|txt)|{CHECKPOINTS}")
ANYTHING = re.compile(r".*", re.DOTALL)

DATASET_NAME = re.compile(r".+-[0-9a-f]{8}")
CONVERSION_NAME = re.compile(r"\..+\.(\d+)\.tmp")
SCRATCH_NAME = re.compile(r"stepladder-[a-z0-9_]{8}")  # as tempfile gives them
TUNED, TOKENIZER = b'{\n "format": "stepladder tuned ', b'{\n "format": "stepladder tokenizer '
CACHES = (".pytest_cache", ".ruff_cache", ".hypothesis")
PACKAGES = (
    "bench", "data", "evals", "hardware", "kernels", "model", "optim_ladder", "pea", "plots", "results", "stepladder",
    "tests", "train",
)  # fmt: skip
ABANDONED_S = 24 * 3600  # a benchmark's scratch folder that nothing was written to for so long has lost its session


@dataclass(frozen=True, kw_only=True)
class Made:
    """Something of ours that can be removed as one.

    Args:
        kind: "run", "dataset", "download", …
        path: the file, or the folder.
        files: what is to be deleted of it.
        folders: what is left empty then.
        foreign: what is in it and is not ours.
        lock: file whose lock says that it is in use.
        note: what a user may want to know before deciding.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    folders: tuple[Path, ...] = ()
    foreign: tuple[Path, ...] = ()
    lock: Path | None = None
    note: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(file.lstat().st_size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Something that stays, and why."""

    path: Path
    reason: str


Found = Iterator[Made | Kept]


def runs(folder: Path) -> Found:
    """Training runs, and the micro-batches that `stepladder tune` has found."""
    for path in entries(folder):
        if path.name == "tuned" and is_folder(path):
            yield from tuned(path)
        elif (match := CONVERSION_NAME.fullmatch(path.name)) and is_folder(path):
            yield from conversion(path, int(match[1]))
        elif is_folder(path) and OWNER.fullmatch(beginning(path / ".lock", 300)):
            yield gathered("run", path, RUN, lock=path / ".lock", note=saved(path))
        elif path.name == "stacks" and is_folder(path):
            yield gathered("unfinished", path, STACKS, note="of an evaluation that was given up")
        else:
            yield Kept(path=path, reason="is a link" if path.is_symlink() else "is no run")


def saved(run: Path) -> str:
    """How far a run has come."""
    steps = sorted(int(path.name[5:]) for path in run.glob("checkpoints/step-*") if path.name[5:].isdigit())
    return (
        f"{len(steps)} checkpoint{'s' * (len(steps) > 1)}, the last at step {steps[-1]:,}" if steps else "no checkpoint"
    )


def tuned(folder: Path) -> Found:
    """Micro-batches that were measured, a file each."""
    for device in entries(folder):
        for path in entries(device) if is_folder(device) else [device]:
            if beginning(path, len(TUNED)) == TUNED:
                yield Made(kind="tuned", path=path, files=(path,), folders=(device, folder))
            else:
                yield Kept(path=path, reason="is nothing that stepladder tune has saved")


def conversion(path: Path, process: int) -> Found:
    """A folder that `stepladder convert` did not finish."""
    if alive(process):
        yield Kept(path=path, reason=f"is in use by process {process}")
    else:
        yield gathered("unfinished", path, CONVERSION, note="a conversion that was cut off")


def prepared(folder: Path) -> Found:
    """Prepared datasets, whole and unfinished, and trained tokenizers."""
    for corpus in entries(folder):
        if corpus.name == "raw" and is_folder(corpus):
            continue
        for path in entries(corpus) if is_folder(corpus) else [corpus]:
            if corpus.name == "tokenizers" and beginning(path, len(TOKENIZER)) == TOKENIZER:
                yield Made(kind="tokenizer", path=path, files=(path,), folders=(corpus,))
            elif is_folder(path) and DATASET_NAME.fullmatch(path.name) and is_file(path / ".lock"):
                whole = is_file(path / "dataset.json")
                found = gathered("dataset" if whole else "unfinished", path, DATASET, lock=path / ".lock")
                note = "" if whole else "a preparation that was cut off; another one goes on from it"
                yield replace(found, folders=(*found.folders, corpus), note=note)
            else:
                yield Kept(path=path, reason="is a link" if path.is_symlink() else "is no prepared dataset")


def downloads(folder: Path) -> Found:
    """What was downloaded, or put there by hand in its place, and what is left of broken downloads."""
    from data.corpora import CORPORA
    from data.hellaswag import place
    from data.hub import HubCorpus

    raw = folder / "raw"
    known = [place(folder)]
    for corpus in CORPORA.values():
        known += [path for _, path in corpus.files(raw)] if hasattr(corpus, "files") else []
        known += [corpus.place(raw, path) for path in corpus.sizes] if isinstance(corpus, HubCorpus) else []
    parts = {path.with_name(f"{path.name}.part") for path in known}
    arriving = {path.parent / ".arriving" for path in known}
    for corpus in entries(raw):
        for path in entries(corpus) if is_folder(corpus) else [corpus]:
            if path in known and is_file(path):
                yield Made(kind="download", path=path, files=(path,), folders=(corpus,))
            elif path in parts and is_file(path):
                yield Made(
                    kind="unfinished",
                    path=path,
                    files=(path,),
                    folders=(corpus,),
                    note="a download that was broken off",
                    lock=path,
                )
            elif path in arriving and is_folder(path):
                yield gathered("unfinished", path, ANYTHING, note="downloads that were broken off")
            else:
                yield Kept(
                    path=path, reason="is a link" if path.is_symlink() else "is no download of a corpus known here"
                )


def caches(root: Path) -> Found:
    """What Python, pytest and killed benchmarks have left; made again when it is needed."""
    if is_file(root / "pyproject.toml"):  # not where the packages are installed among others
        sources = [root / package for package in PACKAGES if is_folder(root / package)]
        compiled = [path for package in sources for path in sorted(package.rglob("__pycache__")) if is_folder(path)]
        files = tuple(file for path in compiled for file in entries(path) if file.suffix == ".pyc" and is_file(file))
        if files:
            yield Made(kind="cache", path=root / "*" / "__pycache__", files=files, folders=tuple(compiled))
        for path in (root / name for name in CACHES):
            if is_folder(path):
                yield gathered("cache", path, ANYTHING)
    for path in Path(tempfile.gettempdir()).glob("stepladder-*"):
        if is_folder(path) and SCRATCH_NAME.fullmatch(path.name) and path.lstat().st_uid == os.getuid():
            found = gathered("cache", path, ANYTHING, note="left by a benchmark that was killed")
            if all(time.time() - p.lstat().st_mtime > ABANDONED_S for p in (*found.files, *found.folders)):
                yield found


def gathered(kind: str, root: Path, ours: re.Pattern[str], *, lock: Path | None = None, note: str = "") -> Made:
    """A folder with all that is ours in it, and no link followed; for the pattern a folder's name ends with a slash."""
    files, folders, foreign = [], [root], []
    for place, names, others in os.walk(root):
        for name in [*names, *others]:
            path = Path(place, name)
            relative = path.relative_to(root).as_posix()
            if is_file(path) and ours.fullmatch(relative):
                files.append(path)
            elif is_folder(path) and ours.fullmatch(f"{relative}/"):
                folders.append(path)
            else:
                foreign.append(path)
        names[:] = [name for name in names if Path(place, name) in folders]
    return Made(
        kind=kind, path=root, files=tuple(files), folders=tuple(folders), foreign=tuple(foreign), lock=lock, note=note
    )


def remove(made: Made) -> None:
    """Deletes what is ours of something, holding its lock, and the folders that are empty then.

    Raises:
        InUse: a process has it.
        OSError: a file cannot be deleted.
    """
    with held(made.lock):
        for file in sorted(made.files, key=lambda file: file == made.lock):  # the lock goes last
            file.unlink(missing_ok=True)
        for folder in sorted(made.folders, key=lambda folder: -len(folder.parts)):
            with contextlib.suppress(OSError):  # it is not empty: what is in it is not ours, or is newer
                folder.rmdir()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
