"""Records on disk: written once, checked on every reading, never changed and never deleted.

    <directory>/<device slug>/<utc>_<commit>_<digest>.json

Profiles (`results.profiles`) are kept in the same way, in a folder of their own.

The digest is part of the name: a file whose bytes no longer give it is damaged, and is said to be. A record is written
to a hidden file beside its place, flushed, then linked there, so that no reader ever sees half of one.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from results.schema import SCHEMA_VERSION, Measurement, Record, RecordError, from_dict, to_dict

T = TypeVar("T")  # Record, or what else is kept like one

NAME = re.compile(r"\d{8}T\d{6}Z_(?:[0-9a-f]{4,9}|nocommit)_(?P<digest>[0-9a-f]{12})\.json")
SLUG = re.compile(r"[a-z0-9][a-z0-9._-]*")
CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
# What the workload of a suite's records counts.
WORKLOAD_COUNTS = {
    "ladder": ("micro_batch", "seq_len", "grad_accumulation", "world_size"),
    "sampling": ("batch", "context"),
    "kernels": (),
}

REASONS = {
    errno.ENOSPC: ("no space left", "free some"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EROFS: ("the file system is read-only", "mount it writable"),
    errno.EACCES: ("not writable", "change its permissions"),
    errno.EPERM: ("not writable", "change its permissions"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "move that file"),
    errno.EEXIST: ("a file stands where a folder is needed", "move that file"),
}


class StoreError(ValueError):
    """A record could not be written; one line names the place, the reason and the remedy."""


def canonical(record: object) -> bytes:
    """The one spelling of a record: JSON in the schema's order, indented, each list of numbers on one line.

    Raises:
        RecordError: the record holds something that JSON does not (NaN, infinity, an object of another library).
    """
    try:
        text = json.dumps(to_dict(record), allow_nan=False, ensure_ascii=False, indent=1)
    except (TypeError, ValueError) as error:
        raise RecordError(f"record cannot be written as JSON: {error}") from error
    # A line break is never part of a JSON string, so this touches layout alone.
    flat = re.sub(r"\[\n([^\[\]{}\"]*)\n *\]", lambda m: "[" + re.sub(r"\n *", " ", m[1].strip()) + "]", text)
    return (flat + "\n").encode()


def write(record: T, directory: Path, rules: Callable[[T], object] | None = None) -> Path:
    """Writes a record atomically under its own name.

    Args:
        record: what was measured.
        directory: folder of all devices' records; made if missing.
        rules: what must hold of its values; `check` if not given.

    Returns:
        Where it lies. Writing the same record again changes nothing.

    Raises:
        RecordError: the record is not valid.
        StoreError: the folder cannot be written, or another file has the name.
    """
    payload = canonical(record)
    (rules or check)(from_dict(type(record), json.loads(payload)))
    commit = record.environment.get("commit")
    stamp = record.created_utc.replace("-", "").replace(":", "")
    digest = hashlib.sha256(payload).hexdigest()[:12]
    path = Path(directory) / record.device["slug"] / f"{stamp}_{commit[:9] if commit else 'nocommit'}_{digest}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(path, payload)
    except OSError as error:
        explain(error, path)
    return path


def check_writable(directory: Path) -> None:
    """Makes sure, before hours are spent measuring, that a record can be written.

    Raises:
        StoreError: it cannot.
    """
    probe = Path(directory) / f".probe-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        try:
            _flush_new(probe, b"can this folder hold a record?\n")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        explain(error, Path(directory))


def load(path: Path, cls: type[T] = Record, rules: Callable[[T], object] | None = None) -> T:
    """Reads one record and checks it.

    Args:
        path: the file.
        cls: what it must be.
        rules: see `write`.

    Raises:
        RecordError: naming the file and what is wrong with it.
    """
    path = Path(path)
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        data = json.loads(payload, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: is not JSON, or only part of it: {error}") from error
    name = NAME.fullmatch(path.name)
    if name and hashlib.sha256(payload).hexdigest()[:12] != name["digest"]:
        raise RecordError(f"{path}: is damaged: its content does not match the digest in its name")
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path}: has schema_version {version!r}; this version reads {SCHEMA_VERSION}")
    if not name:
        raise RecordError(f"{path}: is not named <utc>_<commit>_<digest>.json, so its content cannot be verified")
    try:
        record = from_dict(cls, data)
        (rules or check)(record)
    except (RecordError, OverflowError) as error:
        raise RecordError(f"{path}: {error}") from error
    return record


def load_all(
    directory: Path, device: str | None = None, load: Callable[[Path], T] = load
) -> tuple[list[tuple[Path, T]], list[str]]:
    """Reads every record under a folder.

    Args:
        directory: folder of all devices' records; a missing one holds none.
        device: slug of the one device to read.
        load: reads one.

    Returns:
        The records with their paths, oldest first, and one line for every file that is not a record; those files are
        left as they are.
    """
    records, problems = [], []
    for path in sorted(Path(directory).glob(f"{device or '*'}/*.json")):
        try:
            record = load(path)
            if record.device["slug"] != path.parent.name:
                raise RecordError(
                    f"{path}: was measured on {record.device['slug']}, and lies in another device's folder"
                )
        except RecordError as error:
            problems.append(str(error))
        else:
            records.append((path, record))
    return sorted(records, key=lambda pair: (pair[1].created_utc, pair[0].name)), problems


def explain(error: OSError, path: Path) -> NoReturn:
    """Turns a failed write into one clear line.

    Raises:
        StoreError: always.
    """
    reason, remedy = REASONS.get(error.errno or 0, (error.strerror or str(error), "look at the folder"))
    raise StoreError(f"cannot write {path}: {reason}; {remedy}, or choose another folder with --results-dir") from error


def check_origin(record: Any) -> None:
    """Makes sure that time, device and commit are what a file's name is made of.

    Raises:
        RecordError: naming the field, its value and what it must be.
    """
    if not CREATED.fullmatch(record.created_utc):
        raise RecordError(f"record.created_utc is {record.created_utc!r}, not like 2026-01-31T12:34:56Z")
    slug = record.device.get("slug")
    if not isinstance(slug, str) or not SLUG.fullmatch(slug):
        raise RecordError(f"record.device['slug'] is {slug!r}, not lower-case letters, digits and dashes")
    if not isinstance(record.device.get("name"), str):
        raise RecordError(f"record.device['name'] is {record.device.get('name')!r}, not a name")
    commit = record.environment.get("commit")
    if commit is not None and not (isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{4,}", commit)):
        raise RecordError(f"record.environment['commit'] is {commit!r}, neither a git hash nor null")


def check(record: Record) -> None:
    """Makes sure that a record says what every reader counts on and the field types alone do not.

    Raises:
        RecordError: naming the field, its value and what it must be.
    """
    check_origin(record)
    if record.suite not in WORKLOAD_COUNTS:
        raise RecordError(f"record.suite is {record.suite!r}; this version reads {', '.join(WORKLOAD_COUNTS)}")
    counts = WORKLOAD_COUNTS[record.suite]
    check_workload("record.workload", record.workload, counts)
    for name, measurement in record.measurements.items():
        where = f"record.measurements[{name!r}]"
        if measurement.id != name:
            raise RecordError(f"{where}.id is {measurement.id!r}, not its key")
        check_workload(f"{where}.workload", measurement.workload, counts)
        if record.suite == "kernels":
            _check_problem(where, measurement)
        for trial in measurement.trials:
            for times in ("device_ms", "wall_ms"):
                if not getattr(trial, times) or not all(0 < ms < math.inf for ms in getattr(trial, times)):
                    raise RecordError(f"{where}: trial {trial.index} has no {times}, or one that is not positive")
            if not all(ms > 0 for ms in trial.first_token_ms):
                raise RecordError(f"{where}: trial {trial.index} has a first_token_ms that is not positive")
        if not all(amount > 0 for amount in measurement.work.values()):
            raise RecordError(f"{where}.work is {measurement.work}; every amount must be positive")
    for derivation, steps in record.derivations.items():
        for step in steps:
            for ref in (step.measurement, step.previous):
                if ref is not None and ref not in record.measurements:
                    raise RecordError(f"record.derivations[{derivation!r}] names {ref!r}, which was not measured")


def check_workload(where: str, workload: dict[str, Any], counts: Sequence[str]) -> None:
    """Makes sure that some entries are positive integers.

    Raises:
        RecordError: one is not.
    """
    for key in counts:
        value = workload.get(key)
        if type(value) is not int or value < 1:
            raise RecordError(f"{where}[{key!r}] is {value!r}, not a positive integer")


def _check_problem(where: str, measurement: Measurement) -> None:
    """A kernel's: which problem, computed how, and the least there is to move."""
    workload = measurement.workload
    for key, kind in (("kernel", str), ("title", str), ("direction", str), ("size", str), ("shape", dict)):
        if not isinstance(workload.get(key), kind):
            raise RecordError(f"{where}.workload[{key!r}] is {workload.get(key)!r}, not a {kind.__name__}")
    check_workload(f"{where}.workload['shape']", workload["shape"], list(workload["shape"]))
    if len(measurement.rungs) != 1:
        raise RecordError(f"{where}.rungs is {measurement.rungs}, not the one implementation")
    if measurement.trials and "bytes" not in measurement.work:
        raise RecordError(f"{where}.work is {measurement.work}; it has been timed, so its bytes must be known")


def _write_new(path: Path, payload: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _flush_new(temporary, payload)
        try:
            os.link(temporary, path)  # unlike a rename, never replaces
        except FileExistsError:
            if path.read_bytes() != payload:
                raise StoreError(f"{path} exists and is damaged; a record is never changed: move it away") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK) or path.exists():
                raise
            os.rename(temporary, path)  # a file system without hard links
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the record is in place; this only hardens it against a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _flush_new(path: Path, payload: bytes) -> None:
    with open(path, "xb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
