"""`stepladder clean` as a user meets it: it takes all that was made here, and nothing else, ever."""

import fcntl
import os
import pty
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stepladder.clean
from data.hellaswag import place
from plots.run import save_run
from stepladder import made
from stepladder.cli import main
from stepladder.disk import num_bytes, spoken
from tests.train import tiny
from tests.train.checkpoints import contents
from train.lock import RunLock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, its chart, and the dataset it was trained on."""
    folder = tmp_path_factory.mktemp("real")
    short = {
        "train.steps": 6,
        "train.warmup_steps": 1,
        "validation.every": 2,
        "checkpoints.every": 2,
        "checkpoints.keep": 3,
    }
    tiny.run(folder, "runs/nano", short)
    save_run([folder / "runs" / "nano"])
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches are looked for in folders of the test's own."""
    monkeypatch.setattr(stepladder.clean, "ROOT", tmp_path / "project")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def home(real: Path, tmp_path: Path) -> Path:
    """runs/ and corpora/ with a run, a conversion, a dataset, a tokenizer, a tuned micro-batch, and downloads."""
    shutil.copytree(real / "runs", tmp_path / "runs")
    shutil.copytree(real / "corpora", tmp_path / "corpora")
    run, corpora = tmp_path / "runs" / "nano", tmp_path / "corpora"
    write(run / "stacks" / "rank-1.txt", "a stack")
    write(run / "tensorboard" / "events.out.tfevents.1700000000.host.12.0", "events")
    write(run / "diverged-step-00000004-rank-0.npz", "a batch")
    shutil.copytree(run / "checkpoints" / "step-00000002", run / "checkpoints" / "suspect-step-00000002")
    shutil.copytree(run / "checkpoints" / "step-00000002", run / "checkpoints" / ".tmp-step-00000007")
    write(
        tmp_path / "runs" / "tuned" / "cpu" / "nano-V8192-T64-0.json",
        '{\n "format": "stepladder tuned 1",\n "micro_batch": 4\n}\n',
    )
    write(corpora / "tokenizers" / "my-8k.json", '{\n "format": "stepladder tokenizer 1",\n "name": "my-8k"\n}\n')
    write(corpora / "raw" / "tinyshakespeare" / "input.txt", "To be, or not to be\n" * 50)
    write(place(corpora), "{}")
    write(corpora / "raw" / "tinystories" / "train-00000-of-00004-2d5a1467fff1081b.parquet", "PAR1")
    return tmp_path


DOWNLOADS = ("hellaswag/", "tinyshakespeare/input.txt", "tinystories/train-")
UNFINISHED = ("tinyshakespeare/input.txt.part", "tinystories/.arriving/")


def write(path: Path, text: str = "of the user's own") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def add_unfinished(home: Path) -> None:
    corpora = home / "corpora"
    write(corpora / "raw" / "tinyshakespeare" / "input.txt.part", "To be")
    write(corpora / "raw" / "tinystories" / ".arriving" / "data" / ".cache" / "x.incomplete", "half")
    write(corpora / "page" / "bpe-400-0123abcd" / "train_000000.bin", "half a shard")
    write(corpora / "page" / "bpe-400-0123abcd" / ".lock", "")
    write(home / "runs" / f".nano-hf.{dead()}.tmp" / "model.safetensors", "half a model")


def dead() -> int:
    """Number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def run(capsys: pytest.CaptureFixture, home: Path, *arguments: str) -> tuple[int, str, str]:
    code = main(["clean", *arguments, "--runs", str(home / "runs"), "--corpora", str(home / "corpora")])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_all_that_was_made_goes(capsys, home: Path) -> None:
    add_unfinished(home)
    code, out, err = run(capsys, home, "all", "--force")
    assert (code, err) == (0, "") and "stays" not in out
    assert list(home.joinpath("runs").iterdir()) == []
    assert sorted(path.name for path in home.joinpath("corpora").rglob("*")) == ["raw"]


def test_every_thing_is_listed_with_its_size(capsys, home: Path) -> None:
    add_unfinished(home)
    total = num_bytes(home / "runs") + num_bytes(home / "corpora")
    _, out, _ = run(capsys, home, "--force")
    nano = home / "runs" / "nano"
    lines = out.splitlines()
    assert any(line.startswith("run ") and f"{nano}  (3 checkpoints, the last at step 6)" in line for line in lines)
    for kind, count in {
        "run": 1,
        "tuned": 1,
        "dataset": 1,
        "tokenizer": 1,
        "download": 3,
        "unfinished": 4,
        "all": 1,
    }.items():
        assert sum(line.split()[0] == kind for line in lines) == count, kind
    assert f"all {spoken(total)}".split() in [line.split() for line in lines]
    assert lines[-1] == "removed 11 of 11"


@pytest.mark.parametrize(
    ("what", "gone"),
    [
        ("runs", ["runs/nano", "runs/tuned"]),
        ("corpora", ["corpora/page/char-", "corpora/tokenizers"]),
        ("downloads", [f"corpora/raw/{file}" for file in DOWNLOADS]),
        ("unfinished", [f"corpora/raw/{file}" for file in UNFINISHED] + ["corpora/page/bpe-", "runs/.nano"]),
    ],
)
def test_only_what_was_asked_for(capsys, home: Path, what: str, gone: list[str]) -> None:
    add_unfinished(home)
    before = contents(home)
    code, _, err = run(capsys, home, what, "--force")
    assert (code, err) == (0, "")
    parts = [path for path in before if path.endswith(".part")]
    expected = {
        file
        for file in before
        if any(file.startswith(name) for name in gone) and (file not in parts or what == "unfinished")
    }
    assert before.keys() - contents(home).keys() == expected
    assert contents(home) == {file: content for file, content in before.items() if file not in expected}


@pytest.mark.parametrize("nobody", [os.devnull, None])
def test_nobody_to_ask_removes_nothing(capsys, home: Path, monkeypatch, nobody: str | None) -> None:
    before = contents(home)
    monkeypatch.setattr("sys.stdin", nobody and open(nobody))
    code, out, err = run(capsys, home)
    assert code == 2 and str(home / "runs" / "nano") in out
    assert (
        err == "error: nothing was removed: there is no terminal to ask on; add --force to remove it without asking\n"
    )
    assert contents(home) == before


@pytest.mark.parametrize(
    ("typed", "goes"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("\x04", False)]
)
def test_it_asks_on_a_terminal(home: Path, typed: str, goes: bool) -> None:
    before = contents(home)
    ours, theirs = pty.openpty()
    arguments = ["clean", "runs", "--runs", str(home / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "stepladder", *arguments], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(ours, 4096)
    assert contents(home) == before, "nothing goes before the answer"
    os.write(ours, typed.encode())
    assert process.wait(60) == 0
    os.close(ours)
    assert (contents(home) == before) != goes and (home / "runs" / "nano").exists() != goes


def test_an_interrupt_is_a_no(capsys, home: Path, monkeypatch) -> None:
    def interrupted(question: str) -> bool:
        raise KeyboardInterrupt

    before = contents(home)
    monkeypatch.setattr(stepladder.clean, "agreed", interrupted)
    assert run(capsys, home)[0] == 130 and contents(home) == before


def test_nothing_there_is_nothing_to_remove(capsys, tmp_path: Path) -> None:
    assert run(capsys, tmp_path) == (0, "nothing to remove\n", "")


def test_what_others_made_stays_and_is_named(capsys, home: Path) -> None:
    others = [
        write(home / "runs" / "notes.txt"),
        write(home / "runs" / "thesis" / "chapter.tex"),
        write(home / "runs" / "nano" / "notes.txt"),
        write(home / "runs" / "nano" / "checkpoints" / "step-00000002" / "mine.pt"),
        write(home / "runs" / "nano" / "plots" / "mine.png"),
        write(home / "runs" / "nano" / "metrics.jsonl.bak"),
        write(home / "runs" / "nano" / "hellaswag.png"),
        write(home / "runs" / "fake" / "metrics.jsonl"),
        write(home / "runs" / "locked" / ".lock", "not what a run writes"),
        write(home / "runs" / "nano-hf" / "config.json"),
        write(home / "runs" / "tuned" / "cpu" / "mine.json", "{}"),
        write(home / "corpora" / "readme"),
        write(home / "corpora" / "page" / "mine-0123abcd" / "train_000000.bin"),
        write(home / "corpora" / "tokenizers" / "mine.json", "{}"),
        write(home / "corpora" / "raw" / "mine" / "book.txt"),
        write(home / "corpora" / "raw" / "tinyshakespeare" / "mine.txt"),
        write(home / "project" / "pyproject.toml", ""),
        write(home / "project" / "tests" / "__pycache__" / "mine.txt"),
    ]
    before = {path: path.read_bytes() for path in others}
    code, out, err = run(capsys, home, "--force")
    assert (code, err) == (0, "")
    assert {path: path.read_bytes() for path in others} == before
    named = [line.split()[1] for line in out.splitlines() if line.startswith("stays")]
    for path in others[:-2]:
        assert any(path == Path(name) or path.is_relative_to(name) for name in named), path
    left = {path for folder in ("runs", "corpora") for path in (home / folder).rglob("*") if path.is_file()}
    assert left == set(others[:-2])


def test_links_are_never_followed(capsys, home: Path) -> None:
    outside = home / "outside"
    shutil.copytree(home / "runs" / "nano", outside / "nano")
    shutil.copytree(home / "corpora" / "page", outside / "page")
    write(outside / "model.safetensors")
    run_dir, corpora = home / "runs" / "nano", home / "corpora"
    (home / "runs" / "linked").symlink_to(outside / "nano")
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").symlink_to(outside / "nano" / "checkpoints")
    (run_dir / "recipe.toml").unlink()
    (run_dir / "recipe.toml").symlink_to(outside / "nano" / "recipe.toml")
    (corpora / "linked").symlink_to(outside / "page")
    (corpora / "raw" / "tinyshakespeare" / "input.txt").unlink()
    (corpora / "raw" / "tinyshakespeare" / "input.txt").symlink_to(outside / "model.safetensors")
    (corpora / "raw" / "tinystories" / ".arriving").symlink_to(outside)
    before = contents(outside)
    code, out, err = run(capsys, home, "--force")
    assert (code, err) == (0, "") and contents(outside) == before
    for link in (home / "runs" / "linked", run_dir / "checkpoints", run_dir / "recipe.toml", corpora / "linked"):
        assert link.is_symlink() and str(link) in out
    assert not (run_dir / "metrics.jsonl").exists()


def test_a_folder_that_is_a_link_is_refused(capsys, home: Path) -> None:
    (home / "runs").rename(home / "elsewhere")
    (home / "runs").symlink_to(home / "elsewhere")
    before = contents(home / "elsewhere")
    code, _, err = run(capsys, home, "--force")
    assert code == 2 and err.startswith(f"error: {home / 'runs'} is a link, which is not followed; give the folder")
    assert err.endswith(f" with --runs {home / 'elsewhere'}\n")
    assert contents(home / "elsewhere") == before


def test_a_run_in_use_stays_and_so_does_its_text(capsys, home: Path) -> None:
    shutil.copytree(home / "runs" / "nano", home / "runs" / "live")
    with RunLock(home / "runs" / "live"):
        before = contents(home / "runs" / "live")
        code, out, err = run(capsys, home, "--force")
        assert (code, err) == (0, "") and contents(home / "runs" / "live") == before
        assert f"{home / 'runs' / 'live'} is in use by process {os.getpid()} on " in out
        assert f"may be in use by {home / 'runs' / 'live'}" in out
        assert not (home / "runs" / "nano").exists() and list((home / "corpora" / "page").glob("*/dataset.json"))
    run(capsys, home, "--force")
    assert not (home / "runs" / "live").exists() and not (home / "corpora" / "page").exists()


def test_a_run_that_starts_after_the_question_stays(capsys, home: Path, monkeypatch) -> None:
    lock = RunLock(home / "runs" / "nano")
    monkeypatch.setattr(stepladder.clean, "agreed", lambda question: lock.__enter__() is lock)
    before = contents(home / "runs" / "nano").keys()
    code, out, err = run(capsys, home, "runs")
    assert (
        code == 2 and f"{home / 'runs' / 'nano'} is in use by process {os.getpid()}" in err and "removed 1 of 2" in out
    )
    assert contents(home / "runs" / "nano").keys() == before
    lock.__exit__()


def test_what_is_being_prepared_downloaded_or_converted_stays(capsys, home: Path) -> None:
    add_unfinished(home)
    live = write(home / "runs" / f".nano-hf.{os.getpid()}.tmp" / "model.safetensors")
    locked = [
        home / "corpora" / "page" / "bpe-400-0123abcd" / ".lock",
        home / "corpora" / "raw" / "tinyshakespeare" / "input.txt.part",
    ]
    held = [open(path, "a") for path in locked]
    for file in held:
        fcntl.flock(file, fcntl.LOCK_EX)
    code, out, err = run(capsys, home, "all", "--force")
    assert (code, err) == (0, "") and all(path.exists() for path in (*locked, live))
    assert out.count("in use by another process") == 2 and f"in use by process {os.getpid()}" in out
    for file in held:
        file.close()


def test_what_another_user_made_stays(capsys, home: Path, monkeypatch) -> None:
    real_open = os.open

    def refused(path: Path, *arguments: int, **more: int) -> int:
        if Path(path) == home / "runs" / "nano" / ".lock":
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refused)
    before = contents(home / "runs" / "nano")
    code, out, err = run(capsys, home, "runs", "--force")
    assert (code, err) == (0, "") and f"{home / 'runs' / 'nano'} is not to be locked: Permission denied" in out
    assert contents(home / "runs" / "nano") == before and not (home / "runs" / "tuned").exists()


def test_what_cannot_be_removed_is_said_and_the_rest_goes(capsys, home: Path, monkeypatch) -> None:
    real_unlink = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "recipe.toml":
            raise PermissionError(1, "Operation not permitted", str(path))
        real_unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    code, out, err = run(capsys, home, "all", "--force")
    assert code == 2 and "removed 6 of 7" in out
    assert err == f"error: {home / 'runs' / 'nano' / 'recipe.toml'} could not be removed: Operation not permitted\n"
    assert not (home / "corpora" / "page").exists()


def test_stacks_of_an_evaluation_that_was_given_up(capsys, home: Path) -> None:
    write(home / "runs" / "stacks" / "rank-1.txt", "a stack")
    mine = write(home / "runs" / "stacks" / "mine.txt")
    code, out, _ = run(capsys, home, "unfinished", "--force")
    assert code == 0 and "runs/stacks  (of an evaluation that was given up)" in out
    assert contents(mine.parent) == {"mine.txt": b"of the user's own"}


def test_caches_of_the_project_alone(capsys, home: Path) -> None:
    project = home / "project"
    ours = [
        write(project / "data" / "__pycache__" / "x.cpython-311.pyc"),
        write(project / "tests" / "train" / "__pycache__" / "y.pyc"),
        write(project / ".pytest_cache" / "v" / "lastfailed"),
        write(project / ".ruff_cache" / "0" / "1"),
    ]
    others = [
        write(project / ".venv" / "lib" / "__pycache__" / "z.pyc"),
        write(project / "results" / "records" / "cpu" / "record.json"),
        write(project / ".benchmarks" / "0001.json"),
    ]
    run(capsys, home, "caches", "--force")
    assert all(path.exists() for path in (*ours, *others)), "no project of ours: it has no pyproject.toml"
    write(project / "pyproject.toml")
    code, _, _ = run(capsys, home, "caches", "--force")
    assert code == 0 and not any(path.exists() for path in ours) and all(path.exists() for path in others)


def test_scratch_of_killed_benchmarks(capsys, home: Path) -> None:
    old, young = home / "tmp" / "stepladder-abcd0123", home / "tmp" / "stepladder-abcd_123"
    others = [home / "tmp" / name for name in ("stepladder-records-abcd0123", "stepladder-notes", "other-abcd0123")]
    for folder in (old, young, *others):
        write(folder / "compiled" / "kernel.so")
    past = time.time() - made.ABANDONED_S - 60
    for path in sorted((home / "tmp").rglob("*"), reverse=True):
        os.utime(path, (past, past))
    os.utime(young / "compiled" / "kernel.so")
    code, out, _ = run(capsys, home, "caches", "--force")
    assert code == 0 and not old.exists() and young.exists() and all(folder.exists() for folder in others)


def test_records_are_never_removed(capsys, home: Path) -> None:
    shutil.copytree(ROOT / "results", home / "results", ignore=shutil.ignore_patterns("__pycache__"))
    before = contents(home / "results")
    assert len(before) > 3
    assert (
        main(["clean", "--force", "--runs", str(home / "results"), "--corpora", str(home / "results" / "records")]) == 0
    )
    assert contents(home / "results") == before


def test_a_mistake_is_one_line(capsys, home: Path) -> None:
    code, out, err = run(capsys, home, "run", "--force")
    assert (code, out) == (2, "")
    assert err == "error: cannot clean 'run'; choose from runs, corpora, downloads, unfinished, caches, all\n"


OWN = [
    "nano",
    ".lock",
    "metrics.jsonl",
    "checkpoints",
    "step-00000002",
    "model.safetensors",
    "raw",
    "tuned",
    "char-0123abcd",
    "dataset.json",
]
FOREIGN = ["notes.txt", "model.pt", "step-2", "data", "Checkpoints", "best.txt", "train_1.bin", ".hidden"]


@pytest.mark.parametrize("seed", range(30))
def test_whatever_lies_around_nothing_foreign_goes(capsys, home: Path, seed: int) -> None:
    """Own and foreign names, files, folders and links, mixed at random in and around what is ours."""
    rng = random.Random(seed)
    outside = write(home / "outside" / "kept.txt").parent
    foreign = {}
    for _ in range(60):
        root = rng.choice(
            [
                home / "runs",
                home / "runs" / "nano",
                home / "corpora",
                home / "corpora" / "page",
                home / "corpora" / "raw",
            ]
        )
        path = root.joinpath(*(rng.choice(OWN + FOREIGN) for _ in range(rng.randint(1, 3))), rng.choice(FOREIGN))
        if not any(parent.is_symlink() or parent.is_file() for parent in (path, *path.parents)) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if rng.random() < 0.3:
                path.symlink_to(rng.choice([outside, outside / "kept.txt", home / "runs" / "nano"]))
            else:
                write(path, f"{rng.random()}")
            foreign[path] = path.is_symlink() or path.read_text()
    code, _, err = run(capsys, home, "all", "--force")
    assert (code, err) == (0, "")
    assert {path: path.is_symlink() or path.read_text() for path in foreign} == foreign
    assert contents(outside) == {"kept.txt": b"of the user's own"}
