"""Comparing with other projects' trainers, which are programs here that print a peer's lines without training anything."""

import json
import os
import shutil
import subprocess
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from bench.launch import ROOT
from bench.peers import ours
from bench.peers.entrant import Entrant, Task, commit_of, is_changed
from bench.peers.known import PEERS, checkouts
from bench.peers.process import Failed, Process
from bench.peers.session import Contest, PeersSession
from data import foreign
from results import peers as store
from results.peers import OURS, Comparison, Row
from tests.bench.fakes import Silent
from tests.made_peers import LINES, SETTINGS, TOKENS, WORKLOAD, checkout, entrant, steady, task
from tests.optim_ladder.devices import CPU, H100, T4


def compared(
    tmp_path: Path, *, trials: int = 2, steps: int = 5, time_limit_s: float = 30.0, interrupt_at: str | None = None, **others: Entrant
) -> tuple[Comparison, Silent]:
    """A session of ours, 10 ms a step unless it is given, and others."""
    entrants = {OURS: steady(10.0), **others}
    contest = Contest(
        task=task(CPU, steps), settings=SETTINGS, entrants=entrants, num_trials=trials, time_limit_s=time_limit_s
    )
    scratch, reporter = tmp_path / "scratch", Silent(interrupt_at)
    scratch.mkdir()
    return PeersSession(contest, scratch, reporter).measure(), reporter


def by_name(comparison: Comparison) -> dict[str, Row]:
    return {row.name: row for row in store.rows(comparison)}


# -- reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_a_step_is_read_and_nothing_else_is_taken_for_one(name: str) -> None:
    read = PEERS[name].step_ms
    for ms in (0.07, 12.5, 123456.78):
        assert read(LINES[name].format(i=17, ms=ms)) == pytest.approx(ms, abs=0.005)
    for line in (
        "", "step 0: train loss nan, val loss nan", "validation loss: 10.9", "HellaSwag accuracy: 1/4=0.25",
        "number of parameters: 123.59M", "final 20 iters avg: 12.000ms", "rank 0 sample 0: it took time 12.00ms (12.00 ms",
    ):  # fmt: skip
        assert read(line) is None, line


def test_each_peer_reads_its_own_lines_alone() -> None:
    for name, line in LINES.items():
        assert [peer for peer in PEERS if PEERS[peer].step_ms(line.format(i=3, ms=12.5))] == [name]


def test_ours_is_read_from_metrics() -> None:
    assert ours.step_ms(json.dumps({"kind": "step", "step": 3, "loss": 9.0, "step_ms": 12.5})) == 12.5
    for line in ("", "step 3", '{"kind": "device", "step": 3}', '{"kind": "val", "step": 3, "loss": 4.0}'):
        assert ours.step_ms(line) is None


# -- preparing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gets_its_files_its_tokens_and_its_sizes(name: str, tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout", name)
    made, work = PEERS[name].entrant(place, task(CPU)), tmp_path / "work"
    work.mkdir()
    made.prepare(work)
    assert {file for file in PEERS[name].files} <= {path.name for path in work.iterdir()}
    folder = next(path.parent for path in work.rglob("*train*") if path.suffix in (".bin", ".npy"))
    shards = [shard for path in foreign.find(folder)["train"] for shard in foreign.read(path, vocab_size=50257, eot=50256, tokenizer_sha256="")]
    assert np.array_equal(np.concatenate([shard.open() for shard in shards]), TOKENS)
    assert made.commit == "ab" * 20 and set(made.files_sha256) == set(PEERS[name].files)
    assert (place / PEERS[name].files[0]).read_text() == (checkout(tmp_path / "again", name) / PEERS[name].files[0]).read_text()


def test_nanogpt_is_told_all_on_its_command_line(tmp_path: Path) -> None:
    told = PEERS["nanogpt"].entrant(checkout(tmp_path / "checkout", "nanogpt"), task(CPU)).arguments
    for option in ("--batch_size=2", "--block_size=16", "--n_layer=4", "--n_embd=256", "--bias=True", "--device=cpu", "--dtype=float32"):
        assert option in told
    assert {"--gradient_accumulation_steps=1", "--compile=True", "--max_iters=105"} <= set(told)


@pytest.mark.parametrize(("device", "dtype"), [(H100, "bfloat16"), (T4, "float16"), (CPU, "float32")])
def test_nanogpt_computes_in_what_the_device_can(device, dtype: str, tmp_path: Path) -> None:
    told = PEERS["nanogpt"].entrant(checkout(tmp_path / "checkout", "nanogpt"), task(device)).arguments
    assert f"--dtype={dtype}" in told and f"--device={device.kind}" in told


@pytest.mark.parametrize(("name", "words"), [("nanogpt", "fp32"), ("build-nanogpt", "bf16"), ("llm.c", "fp32")])
def test_on_a_processor_it_is_said_what_a_peer_computes_in(name: str, words: str, tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout", name)
    assert PEERS[name].entrant(place, task(CPU)).notes == [*PEERS[name].notes, words]
    assert PEERS[name].entrant(place, task(H100)).notes == list(PEERS[name].notes)


def test_sizes_of_build_nanogpt_are_put_into_its_program(tmp_path: Path) -> None:
    made = PEERS["build-nanogpt"].entrant(checkout(tmp_path / "checkout", "build-nanogpt"), task(CPU))
    work = tmp_path / "work"
    work.mkdir()
    made.prepare(work)
    program = (work / "train_gpt2.py").read_text()
    for line in ("B = 2 # a", "T = 16", "total_batch_size = 32 # b", "max_steps = 105", "use_compile = True # c"):
        assert line in program.splitlines()
    assert "GPTConfig(vocab_size=50304, block_size=16, n_layer=4, n_head=4, n_embd=256)" in program
    assert "B = 2" in made.changes and (work / "hellaswag.py").exists()


def test_llmc_takes_its_own_sizes_by_name_and_others_in_place_of_its_smallest(tmp_path: Path) -> None:
    place, work = checkout(tmp_path / "checkout", "llm.c"), tmp_path / "work"
    work.mkdir()
    small = PEERS["llm.c"].entrant(place, task(CPU))
    small.prepare(work)
    assert "n_layer=4, n_head=4, n_embd=256)" in (work / "train_gpt2.py").read_text() and "--model=d12" in small.arguments
    medium = Task(device=H100, workload=type(WORKLOAD)(model="gpt2-medium"), num_steps=5, tokens=TOKENS)
    known = PEERS["llm.c"].entrant(place, medium)
    assert "--model=d24" in known.arguments and not known.changes
    assert {"--dtype=bfloat16", "--compile=1", "--flash=1", "--tensorcores=1", "--total_batch_size=1024"} <= set(known.arguments)


@pytest.mark.parametrize("text", ["B = 64\nB = 64\n", ""])
def test_another_version_is_refused_before_anything_runs(text: str, tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout", "build-nanogpt")
    program = place / "train_gpt2.py"
    program.write_text(program.read_text().replace("B = 64 # a\n", text))
    with pytest.raises(ValueError, match=r"match '\^B = .*not 1: it is of another version"):
        PEERS["build-nanogpt"].entrant(place, task(CPU))


@pytest.mark.parametrize(("name", "option"), [("nanogpt", "eval_iters"), ("llm.c", "input_bin")])
def test_an_option_that_is_not_there_is_refused_before_anything_runs(name: str, option: str, tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout", name)
    program = place / PEERS[name].files[0]
    program.write_text(program.read_text().replace(option, f"{option}s"))
    with pytest.raises(ValueError, match=rf"has no option '{option}': it is not .*, or of another version"):
        PEERS[name].entrant(place, task(CPU))


def test_one_peers_folder_is_not_taken_for_anothers(tmp_path: Path) -> None:
    """Both call their program train_gpt2.py, and one of them listens to no option."""
    place = checkout(tmp_path / "checkout", "build-nanogpt")
    with pytest.raises(ValueError, match="no option 'device': it is not llm.c"):
        PEERS["llm.c"].entrant(place, task(CPU))


def test_a_program_that_is_no_text_is_refused(tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout", "nanogpt")
    (place / "model.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not nanoGPT: its program is no text; give a checkout of"):
        PEERS["nanogpt"].entrant(place, task(CPU))


def test_a_program_is_copied_byte_by_byte_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, work = checkout(tmp_path / "check out", "nanogpt"), tmp_path / "work"
    (place / "model.py").write_bytes("# naïve – π\r\n".encode())
    work.mkdir()
    monkeypatch.setattr(Path, "write_text", None)  # which would ask the locale
    PEERS["nanogpt"].entrant(place, task(CPU)).prepare(work)
    assert (work / "model.py").read_bytes() == (place / "model.py").read_bytes()


def git(place: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(place), *who, *arguments], check=True, capture_output=True, timeout=60)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_that_was_changed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = checkout(tmp_path / "checkout", "nanogpt")
    shutil.rmtree(place / ".git")
    assert is_changed(place, ["train.py"]) is None
    git(place, "init", "-q")
    (place / "notes").write_text("nothing that runs")
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "all")
    assert is_changed(place, PEERS["nanogpt"].files) is False
    os.utime(place / "train.py", (0, 0))  # touched, and the same
    (place / "notes").write_text("other")
    assert is_changed(place, PEERS["nanogpt"].files) is False
    (place / "model.py").write_text("# faster\n")
    index = (place / ".git" / "index").read_bytes()
    assert PEERS["nanogpt"].entrant(place, task(CPU)).dirty is True
    assert (place / ".git" / "index").read_bytes() == index  # nothing is written there
    monkeypatch.setenv("PATH", "")
    assert is_changed(place, PEERS["nanogpt"].files) is None


def test_a_home_folder_is_found_behind_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "nano GPT").mkdir()
    assert checkouts(["nanogpt=~/nano GPT"]) == {"nanogpt": tmp_path / "nano GPT"}
    with pytest.raises(ValueError, match="there is no such folder"):
        checkouts(["nanogpt=~nobody-at-all/x"])


def test_another_folder_is_refused(tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout", "llm.c")
    with pytest.raises(ValueError, match=r"is not nanoGPT: it has no train.py; give a checkout of https://github.com"):
        PEERS["nanogpt"].entrant(place, task(CPU))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nanogpt"], "'nanogpt' does not say where"),
        (["nanogpt="], "'nanogpt=' does not say where"),
        (["nanogtp=."], "unknown peer 'nanogtp': did you mean 'nanogpt'?"),
        (["llm.c=/nowhere"], "llm.c=/nowhere: there is no such folder; clone https://github.com"),
        (["llm.c=.", "llm.c=.."], "llm.c is given twice, . and .."),
    ],
)
def test_what_is_no_checkout_is_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError) as error:
        checkouts(arguments)
    assert words in str(error.value)


def test_the_commit_is_found_without_git(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    place = checkout(tmp_path / "loose", "llm.c")
    assert commit_of(place) == "ab" * 20
    (place / ".git" / "refs" / "heads" / "master").unlink()
    (place / ".git" / "packed-refs").write_text(f"# pack-refs with: peeled\n{'cd' * 20} refs/heads/master\n")
    assert commit_of(place) == "cd" * 20
    (place / ".git" / "HEAD").write_text("ef" * 20)
    assert commit_of(place) == "ef" * 20
    (place / ".git" / "HEAD").write_text("ref: refs/heads/gone\n")
    assert commit_of(place) is None


def test_ours_is_a_recipe_that_trains_the_same(tmp_path: Path) -> None:
    from train.recipe import Recipe
    from train.setup import share, workload

    made = ours.entrant(task(CPU), SETTINGS.rungs)
    made.prepare(tmp_path)
    recipe = Recipe.from_dict(tomllib.loads((tmp_path / "recipe.toml").read_text()))
    assert workload(recipe, 50257, micro_batch=2, accumulation=1, world_size=1) == WORKLOAD
    assert share(recipe.train, micro_batch=recipe.train.micro_batch, world_size=1).accumulation == 1
    assert tuple(recipe.train.rungs) == SETTINGS.rungs and recipe.train.steps == 105
    assert recipe.validation.every == recipe.samples.every == recipe.hellaswag.every == 0
    found = foreign.read(tmp_path / "tokens" / "train.bin", vocab_size=50257, eot=50256, tokenizer_sha256="")
    assert np.array_equal(found[0].open(), TOKENS)
    assert made.environment["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


# -- measuring -----------------------------------------------------------------------------------------------------------


def test_speeds_and_ratios_are_those_that_were_printed(tmp_path: Path) -> None:
    comparison, reporter = compared(tmp_path, trials=3, a=steady(15.0), b=steady([12.0, 12.6, 13.2], tmp_path))
    found = by_name(comparison)
    assert comparison.status == "complete" and reporter.steps == 9 and len(reporter.lines) == 9
    assert found["a"].ours_over.ratio == pytest.approx(1.5) and found["a"].ours_over.low == pytest.approx(1.5)
    assert found["b"].ours_over.ratio == pytest.approx(1.26) and found["b"].ours_over.low < 1.2 < 1.32 < found["b"].ours_over.high
    assert found[OURS].tokens_per_second.value == pytest.approx(32 / 0.010)
    store.write(comparison, tmp_path / "peers")


def test_the_first_step_and_the_warm_up_are_left_out(tmp_path: Path) -> None:
    """12 steps fall to a third; the rule needs 5 settled ones against the 5 before."""
    times = [9000.0, *[30.0 / (1 + i / 6) for i in range(12)], *[10.0] * 40]
    slow = entrant(f"for ms in {times}: print(ms)\nsys.stdout.flush()\nwait()")
    comparison, _ = compared(tmp_path, trials=1, steps=7, slow=slow)
    run = comparison.entrants["slow"].runs[0]
    assert run.first_step_ms == 9000.0 and run.step_ms == [10.0] * 7
    assert run.warmup_settled and 14 <= run.warmup_steps <= 24


def test_every_trial_visits_all_once_in_mirrored_random_order(tmp_path: Path) -> None:
    comparison, _ = compared(tmp_path, trials=4, a=steady(1.0), b=steady(1.0), c=steady(1.0))
    places = {(run.index, run.position): name for name, e in comparison.entrants.items() for run in e.runs}
    orders = [[places[trial, position] for position in range(4)] for trial in range(4)]
    assert all(sorted(order) == ["a", "b", "c", OURS] for order in orders)
    assert orders[1] == orders[0][::-1] and orders[3] == orders[2][::-1] and orders[0] != orders[2]


def test_every_process_begins_in_a_fresh_folder_and_none_outlives_its_trial(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    body = f"""
        import subprocess
        assert not os.path.exists("left"), "not fresh"
        open("left", "w").close()
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        with open({str(tmp_path / "pids")!r}, "a") as file:
            print(os.getpid(), child.pid, file=file)
        for i in range(60): print(7.0)
        sys.stdout.flush()
        wait()
    """
    comparison, _ = compared(tmp_path, trials=2, a=entrant(body))
    assert comparison.entrants["a"].status == "ok", comparison.entrants["a"].reason
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 4
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # a killed one may take a moment, or be over with nobody to wait for it
            process, end = psutil.Process(int(pid)), time.monotonic() + 10
            while process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < end


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("print(1.0)\nraise RuntimeError('bad luck')", "crashed", "trial 1: RuntimeError: bad luck"),
        ("import atexit\natexit.register(os.write, 2, b'leaked 3')\nraise ImportError('no tqdm')", "crashed", "trial 1: ImportError: no tqdm"),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate')", "oom", "trial 1: RuntimeError: CUDA out of memory"),
        ("print('error: bad option', file=sys.stderr)\nsys.exit(2)", "crashed", "trial 1: error: bad option"),
        ("print('nothing of interest')", "crashed", "trial 1: it ended with exit code 0 before"),
        ("for i in range(12): print(3.0)", "crashed", "trial 1: it ended with exit code 0 before"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "trial 1: the worker was ended by SIGSEGV"),
        ("open(os.getcwd() + '/data.bin')", "crashed", "No such file or directory: 'data.bin'"),
    ],
)
def test_a_failure_is_a_row_with_its_reason(body: str, status: str, words: str, tmp_path: Path) -> None:
    comparison, reporter = compared(tmp_path, bad=entrant(body), good=steady(20.0))
    bad = comparison.entrants["bad"]
    assert bad.status == status and words in bad.reason and not bad.runs
    assert str(tmp_path) not in bad.reason
    assert by_name(comparison)["good"].ours_over.ratio == pytest.approx(2.0) and comparison.status == "complete"
    assert sum("of bad" in line for line in reporter.lines) == 2


def test_one_that_prints_nothing_is_hung(tmp_path: Path) -> None:
    comparison, _ = compared(tmp_path, trials=1, time_limit_s=1.5, silent=entrant("wait()"))
    assert comparison.entrants["silent"].status == "hung" and "after 2 s; raise --time-limit" in comparison.entrants["silent"].reason
    assert comparison.entrants[OURS].status == "ok"


def test_one_that_fails_later_is_out(tmp_path: Path) -> None:
    fragile = steady([10.0], tmp_path)  # has no time for a second trial
    comparison, _ = compared(tmp_path, trials=3, fragile=fragile)
    found = comparison.entrants["fragile"]
    assert found.status == "crashed" and found.reason == "trial 2: IndexError: list index out of range" and len(found.runs) == 1
    assert by_name(comparison)["fragile"].ours_over is None


def test_when_ours_fails_the_others_are_not_run_for_nothing(tmp_path: Path) -> None:
    comparison, reporter = compared(tmp_path, trials=4, **{OURS: entrant("sys.exit('error: no')"), "a": steady(1.0)})
    assert comparison.status == "partial" and comparison.entrants[OURS].reason == "trial 1: error: no"
    assert len(comparison.entrants["a"].runs) <= 1 and len(reporter.lines) == 8
    assert all(row.ours_over is None for row in store.rows(comparison))


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    comparison, _ = compared(tmp_path, trials=4, a=steady(20.0), interrupt_at="trial 3/4 of a")
    assert comparison.status == "partial" and len(comparison.entrants["a"].runs) == 2
    assert by_name(comparison)["a"].ours_over.ratio == pytest.approx(2.0)
    store.write(comparison, tmp_path / "peers")


def test_a_line_that_is_written_in_pieces_is_read_whole(tmp_path: Path) -> None:
    body = "import time\nfor piece in ('12', '.5', '\\n14', '.5\\n'): os.write(1, piece.encode()); time.sleep(0.05)\nwait()"
    with Process(entrant(body), tmp_path, os.environ, 30.0) as process:
        steps = process.steps()
        assert [next(steps)[0] for _ in range(2)] == [12.5, 14.5]


def test_what_is_written_just_before_the_end_is_read(tmp_path: Path) -> None:
    with Process(entrant("os.write(1, b'1.0\\n2.0\\n')"), tmp_path, os.environ, 30.0) as process:
        process.process.wait()
        steps = process.steps()
        assert next(steps)[0] == 1.0 and next(steps)[0] == 2.0
        with pytest.raises(Failed):
            next(steps)


def test_a_log_of_its_own_may_appear_late(tmp_path: Path) -> None:
    body = "print(1.0)\nos.mkdir('run')\nwith open('run/log', 'w') as file:\n    for i in range(9): print(5.0, file=file)\nwait()"
    with Process(entrant(body, log="run/log"), tmp_path, os.environ, 30.0) as process:
        steps = process.steps()
        assert [next(steps)[0] for _ in range(9)] == [5.0] * 9


def test_from_outside_is_what_a_clock_on_the_wall_says(tmp_path: Path) -> None:
    body = "import time\nprint(9.0)\nfor i in range(60):\n    time.sleep(0.02)\n    print(1.0, flush=True)"  # says 1, takes 20
    comparison, _ = compared(tmp_path, trials=1, steps=10, liar=entrant(body))
    row = by_name(comparison)["liar"]
    assert row.step_ms.value == 1.0 and row.wall_over_step > 15


def test_peers_see_gpt2s_encoding_and_neither_our_sources_nor_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "cache")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("PYTHONPATH", "/site")
    contest = Contest(task=task(CPU), settings=SETTINGS, entrants={OURS: ours.entrant(task(CPU), ())})
    session = PeersSession(contest, tmp_path, Silent())
    seen = session._environment(steady(1.0))
    assert seen["TIKTOKEN_CACHE_DIR"] == str(tmp_path / "cache") and seen["PYTHONPATH"] == "/site"
    assert seen["CUDA_VISIBLE_DEVICES"] == "" and "RANK" not in seen
    assert session._environment(contest.entrants[OURS])["PYTHONPATH"] == f"{ROOT}{os.pathsep}/site"


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_program_is_started_as_it_is_told(name: str, tmp_path: Path) -> None:
    made = PEERS[name].entrant(checkout(tmp_path / "checkout", name, ms=12.5), task(CPU))
    comparison, _ = compared(tmp_path, trials=1, **{name: made})
    assert comparison.entrants[name].status == "ok", comparison.entrants[name].reason
    assert by_name(comparison)[name].ours_over.ratio == pytest.approx(1.25)
    assert comparison.entrants[name].command == [PEERS[name].files[0], *PEERS[name].arguments(task(CPU))]
