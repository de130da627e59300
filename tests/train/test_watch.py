"""What happens in a run is written down line by line, shown, and handed on; and nothing of that can end the run."""

import builtins
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console

from results.runs import METRICS, load_run
from train.progress import TrainingProgress, clock_time, printable
from train.watch import Watch

ROOT = Path(__file__).resolve().parent.parent.parent
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def shown(console: Console) -> str:
    return console.file.getvalue()


def take(watch: Watch, *steps: int, loss: float | None = None) -> None:
    for step in steps:
        watch.step(
            step=step, loss=10.0 / step if loss is None else loss, norm=1.5, lr=3e-4, tokens=step * 4096,
            epoch=step / 100, step_ms=450.0, tokens_per_second=9100.0, mfu=None,
        )  # fmt: skip


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def watching(folder: Path, console: Console | None = None, **options: object) -> Watch:
    return Watch(folder, **{"total_steps": 10, "console": console or plain(), "name": "nano", **options})


# ------------------------------------------------------------------------------------------- metrics.jsonl


def test_every_kind_of_row_is_written_as_it_is_said_to_be(tmp_path: Path) -> None:
    with watching(tmp_path / "runs" / "nano") as watch:
        watch.event("start", 0, settings={"rungs": ["bf16"], "path": Path("x")}, world_size=1, resumed=False)
        take(watch, 1)
        watch.device(1, {"temperature_c": 61.0, "memory_bytes": 2**30})
        watch.val(1, 4.9, 65536, True)
        watch.sample(1, "def ", "f(): …\n")
        watch.event("checkpoint", 1, path="checkpoints/step-00000001", seconds=0.3)
        watch.event("stop", 1, reason="finished")
    found = rows(tmp_path / "runs" / "nano")
    assert [row["kind"] for row in found] == ["start", "step", "device", "val", "sample", "checkpoint", "stop"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found[0].pop("utc"))
    assert found[0] == {"kind": "start", "step": 0, "settings": {"rungs": ["bf16"], "path": "x"}, "world_size": 1,
                        "resumed": False}  # fmt: skip
    assert found[1] == {"kind": "step", "step": 1, "loss": 10.0, "norm": 1.5, "lr": 3e-4, "tokens": 4096, "epoch": 0.01,
                        "step_ms": 450.0, "tokens_per_second": 9100.0, "mfu": None}  # fmt: skip
    assert found[2] == {"kind": "device", "step": 1, "temperature_c": 61.0, "memory_bytes": 2**30}
    assert found[3] == {"kind": "val", "step": 1, "loss": 4.9, "tokens": 65536, "best": True}
    assert found[4] == {"kind": "sample", "step": 1, "prompt": "def ", "text": "f(): …\n"}


def test_a_row_is_on_its_way_to_the_disk_before_the_call_returns(tmp_path: Path) -> None:
    with watching(tmp_path) as watch:
        for step in (1, 2, 3):
            take(watch, step)
            assert rows(tmp_path)[-1]["step"] == step


def test_numbers_that_json_lacks_are_strings_and_every_line_is_json(tmp_path: Path) -> None:
    with watching(tmp_path) as watch:
        for step, loss in enumerate((math.nan, math.inf, -math.inf, 2.5), 1):
            take(watch, step, loss=loss)
        watch.event("start", 4, nested={"a": [math.nan, 1, True, None, ("x", Path("y"))]})

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    found = [json.loads(line, parse_constant=refuse) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [row["loss"] for row in found[:4]] == ["nan", "inf", "-inf", 2.5]
    assert found[4]["nested"] == {"a": ["nan", 1, True, None, ["x", "y"]]}
    assert load_run(tmp_path).broke_at == 1


def test_scalars_of_other_libraries_and_odd_text_are_written(tmp_path: Path) -> None:
    import numpy as np

    with watching(tmp_path) as watch:
        take(watch, 1, loss=np.float32(0.5))
        watch.val(1, np.float32(math.nan), np.int64(7), np.bool_(True))
        watch.sample(1, "\ud800", "line\nbreak \u2028 \x00")
    found = rows(tmp_path)
    assert found[0]["loss"] == 0.5 and found[1]["loss"] == "nan" and (found[1]["tokens"], found[1]["best"]) == (7, True)
    assert found[2]["prompt"] == "\ud800" and found[2]["text"] == "line\nbreak \u2028 \x00"


def test_the_loss_is_written_to_its_last_bit(tmp_path: Path) -> None:
    loss = float.fromhex("0x1.23456789abcdfp+2")
    with watching(tmp_path) as watch:
        take(watch, 1, loss=loss)
    assert load_run(tmp_path).steps.loss[0] == loss


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    with watching(tmp_path) as watch:
        watch.event("start", 0)
        take(watch, *range(1, 6))
        watch.val(4, 3.0, 8, True)
        watch.val(5, 2.0, 8, True)
        watch.event("stop", 5, reason="SIGTERM")
    with watching(tmp_path, resumed_at=4) as watch:
        watch.event("start", 4, resumed=True)
        take(watch, 5, 6)
    run = load_run(tmp_path)
    assert list(run.steps.step) == [1, 2, 3, 4, 5, 6] and run.vals == {4: 3.0} and run.resumed == [4]
    assert run.start["reached"] == 5 and run.stop is None
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in tmp_path.iterdir()} == {METRICS}


@pytest.mark.parametrize(
    "torn", ['{"kind": "step", "step": 4, "lo', "\0\0\0", '{"kind": "step", "step": 3, "loss": 1.0}']
)
def test_what_a_kill_left_at_the_end_does_not_spoil_the_next_row(tmp_path: Path, torn: str) -> None:
    with watching(tmp_path) as watch:
        take(watch, 1, 2)
    with open(tmp_path / METRICS, "a") as file:
        file.write(torn)  # no line break at its end
    with watching(tmp_path, resumed_at=3) as watch:
        take(watch, 4)
    assert list(load_run(tmp_path).steps.step) == ([1, 2, 3, 4] if torn.endswith("}") else [1, 2, 4])


def test_a_resumed_run_without_metrics_begins_some(tmp_path: Path) -> None:
    with watching(tmp_path, resumed_at=7) as watch:
        take(watch, 8)
    assert list(load_run(tmp_path).steps.step) == [8]


def test_a_fresh_start_sets_older_metrics_aside(tmp_path: Path) -> None:
    for loss in (1.0, 2.0, 3.0):
        with watching(tmp_path) as watch:
            take(watch, 1, loss=loss)
    assert [load_run(tmp_path).steps.loss[0]] == [3.0]
    assert {path.name for path in tmp_path.iterdir()} == {METRICS, "metrics.1.jsonl", "metrics.2.jsonl"}
    assert '"loss": 1.0' in (tmp_path / "metrics.1.jsonl").read_text()


def test_a_failed_rewind_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watching(tmp_path) as watch:
        take(watch, 1, 2)
    before = (tmp_path / METRICS).read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"metrics.jsonl: No space left on device; mend that, or choose .* --run-dir"):
        watching(tmp_path, resumed_at=1)
    assert (tmp_path / METRICS).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write .*file/nano/metrics.jsonl: Not a directory"):
        watching(tmp_path / "file" / "nano")


def test_a_full_disk_costs_rows_and_one_warning(tmp_path: Path) -> None:
    """The limit on file size is the kernel's own: a write at its edge is cut short, the next one fails."""
    program = f"""
import resource, signal, sys
from pathlib import Path
from train.metrics import MetricsFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
metrics = MetricsFile(Path({str(tmp_path)!r}), resumed_at=None, warn=print)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(1, 101):
    metrics.write({{"kind": "step", "step": step, "loss": 5.0}})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
metrics.write({{"kind": "step", "step": 101, "loss": 4.0}})
print(metrics.num_lost)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    *warnings, lost = result.stdout.splitlines()
    assert len(warnings) == 1 and "the run goes on" in warnings[0]
    steps = list(load_run(tmp_path).steps.step)  # no line is torn, or it would be refused as damaged
    assert steps == [*range(1, 101 - int(lost)), 101] and 0 < int(lost) < 100


def test_rows_outlive_a_kill(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from rich.console import Console
from train.watch import Watch
with Watch(Path({str(tmp_path)!r}), total_steps=9, console=Console(), name="x") as watch:
    watch.val(1, 4.0, 8, True)
    watch.val(2, 3.0, 8, True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60)
    assert result.returncode == -signal.SIGKILL and load_run(tmp_path).vals == {1: 4.0, 2: 3.0}


def test_a_step_costs_microseconds_and_no_file_descriptors(tmp_path: Path) -> None:
    times = []
    with watching(tmp_path, total_steps=10**6) as watch:
        take(watch, 1)
        descriptors = len(os.listdir("/dev/fd"))
        for step in range(2, 5002):
            began = time.perf_counter()
            take(watch, step)
            times.append(time.perf_counter() - began)
        assert len(os.listdir("/dev/fd")) == descriptors
    assert median(times) < 100e-6  # about 5 µs; a step of training takes milliseconds


# ---------------------------------------------------------------------------------------------- the terminal


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def walk(progress: TrainingProgress, clock: Clock, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        progress.step(step, loss=5.0, lr=3e-4, tokens_per_second=123_456.0, mfu=0.41)


def test_plain_lines_come_at_the_first_step_every_ten_seconds_and_at_the_last(tmp_path: Path) -> None:
    console, clock = plain(), Clock()
    progress = TrainingProgress(console, total_steps=100, clock=clock)
    progress.start()
    walk(progress, clock, range(1, 101), seconds=0.5)
    progress.stop()
    lines = shown(console).splitlines()
    assert [int(re.match(r"step (\d+)/100", line)[1]) for line in lines] == [1, 21, 41, 61, 81, 100]
    assert lines[1] == "step 21/100 · loss 5.0000 · 123k tokens/s · MFU 41.0 % · lr 3.00e-04 · 0:40 left"
    assert "left" not in lines[0] and "left" not in lines[-1]


def test_the_time_left_counts_from_the_second_step_on_and_knows_a_resumption(tmp_path: Path) -> None:
    """The first step compiles; what it took says nothing of the others."""
    console, clock = plain(), Clock()
    progress = TrainingProgress(console, total_steps=5000, first_step=4000, clock=clock)
    walk(progress, clock, range(4001, 4002), seconds=600.0)
    walk(progress, clock, range(4002, 4012), seconds=1.0)
    assert shown(console).splitlines()[-1].endswith("16:29 left")


def test_plain_output_says_what_happens_and_has_no_control_codes(tmp_path: Path) -> None:
    console = plain()
    with watching(tmp_path, console) as watch:
        watch.working("compiling the first step")
        watch.device(1, {"temperature_c": 61.2, "power_w": 640.4, "memory_bytes": 35 * 2**30})
        take(watch, 1)
        watch.working("validating")
        watch.val(1, 4.8123, 65536, True)
        watch.val(2, 4.9, 65536, False)
        watch.sample(2, "Once", " upon\x1b[31m a\r\n\n time\x07" + " x" * 500)
        watch.event("checkpoint", 2, path="checkpoints/step-00000002", seconds=0.31)
        watch.event("stop", 2, reason="SIGTERM")
    text = shown(console)
    assert not CONTROL.search(text)
    lines = text.splitlines()
    assert lines[:4] == [
        "compiling the first step …",
        "step 1/10 · loss 10.0000 · 9,100 tokens/s · lr 3.00e-04 · 61 °C · 640 W · 35.0 GiB",
        "step 1/10 · validation loss 4.8123 · best so far",
        "step 2/10 · validation loss 4.9000",
    ]
    assert lines[4].startswith("step 2/10 · sample: Once upon\ufffd[31m a time\ufffd x x") and lines[4].endswith("…")
    assert len(lines[4]) < 330
    assert lines[5:] == ["step 2/10 · saved checkpoints/step-00000002 · 0.3 s", "step 2/10 · stopped: SIGTERM"]


def test_a_terminal_gets_a_bar_and_lines_above_it(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with watching(tmp_path, console) as watch:
        watch.working("compiling the first step")
        watch.device(1, {"temperature_c": 61.2})
        take(watch, 1)
        watch.val(1, 4.8123, 65536, True)
        watch.working("validating")
        take(watch, *range(2, 11))
    text = shown(console)
    assert "10/10" in text and "100 %" in text and "loss 1.0000 · 9,100 tokens/s · lr 3.00e-04 · 61 °C" in text
    assert "step 1/10 · validation loss 4.8123 · best so far" in text and "step 2/10" not in text


def test_a_bar_that_is_told_the_same_before_every_step_is_not_drawn_for_it(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress = TrainingProgress(console, total_steps=10)
    updates = []
    progress._bar.update = lambda *_, **fields: updates.append(fields)
    for _ in range(1000):
        progress.working("training")
    assert updates == [{"description": "training"}]


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with watching(tmp_path, console) as watch:
        take(watch, 1)
    assert not CONTROL.search(shown(console)) and "step 1/10" in shown(console)


class Gone(io.StringIO):
    """A terminal whose window was closed."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str) -> int:
        raise self.error


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(28, "No space left on device")])
def test_a_terminal_that_is_gone_ends_nothing(tmp_path: Path, error: OSError, terminal: bool) -> None:
    console = Console(file=Gone(error), force_terminal=terminal, width=100)
    with watching(tmp_path, console) as watch:
        take(watch, *range(1, 11))
        watch.val(10, 4.0, 8, True)
    assert len(load_run(tmp_path).steps) == 10


def test_a_closed_pipe_ends_nothing(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from rich.console import Console
from train.watch import Watch
with Watch(Path({str(tmp_path)!r}), total_steps=9, console=Console(), name="x") as watch:
    for step in range(2000):
        watch.val(step, 4.0, 8, False)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 0, errors
    assert len(load_run(tmp_path).vals) == 2000


def test_a_terminal_without_unicode_is_written_to_in_its_own_letters(tmp_path: Path) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), force_terminal=False, width=100)
    with watching(tmp_path, console) as watch:
        watch.sample(1, "", "naïve café")
    console.file.flush()
    assert b"na?ve caf?" in raw.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (59.6, "1:00"), (753, "12:33"), (11553, "3:12:33"),
                                                (3 * 86400 + 61, "3 d 0:01:01"), (math.inf, "?")])  # fmt: skip
def test_clock_time(seconds: float, words: str) -> None:
    assert clock_time(seconds) == words


def test_printable_is_one_line_of_bounded_length() -> None:
    assert printable("a\n\tb\x1b]0;x\x07") == "a b\ufffd]0;x\ufffd" and printable("x" * 400, 10) == "x" * 9 + "…"


# -------------------------------------------------------------------------------------- TensorBoard and Trackio


def follow(folder: Path, **options: object) -> None:
    """Two starts of one run: five steps, then from step three on again, with other losses."""
    with watching(folder, **options) as watch:
        watch.event("start", 0, settings={"rungs": ["bf16"]})
        take(watch, *range(1, 6), loss=5.0)
        watch.val(3, 4.0, 8, True)
        watch.device(3, {"temperature_c": 61.0})
        watch.sample(3, "Once", " upon")
    with watching(folder, resumed_at=3, **options) as watch:
        watch.event("start", 3, resumed=True)
        take(watch, *range(4, 8), loss=6.0)


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    follow(tmp_path, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/norm", "train/lr", "train/tokens_per_second", "val/loss", "device/temperature_c",
    }  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 5.0), (2, 5.0), (3, 5.0), (4, 6.0), (5, 6.0), (6, 6.0), (7, 6.0),
    ]  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(3, 4.0)]
    text = events.Tensors("sample/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "Once upon" in text and "settings/text_summary" in events.Tags()["tensors"]


TRACKIO = """
import socket, sys
from pathlib import Path
asked = []
def refused(*arguments, **_):
    asked.append(arguments)
    raise OSError("there is no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = socket.socket.bind = refused
import test_watch
test_watch.follow(Path(sys.argv[1]), trackio=True, console=test_watch.Console(force_terminal=False))
print("asked for the network:", len(asked))
"""


@pytest.mark.parametrize("token", [None, "hf_none"])
def test_trackio_has_every_step_once_and_needs_no_network(tmp_path: Path, token: str | None) -> None:
    pytest.importorskip("trackio")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRACKIO_"))}
    environment |= {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HOME": str(tmp_path / "hf")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/train'}"} | ({"HF_TOKEN": token} if token else {})
    command = [sys.executable, "-c", TRACKIO, str(tmp_path / "nano")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert not CONTROL.search(result.stdout) and "failed" not in result.stdout
    assert token or "asked for the network: 0\n" in result.stdout
    found = read_trackio(tmp_path / "trackio")
    assert [(row["step"], row["train/loss"]) for row in found if "train/loss" in row] == [
        (1, 5.0), (2, 5.0), (3, 5.0), (4, 5.0), (5, 5.0), (6, 6.0), (7, 6.0),
    ]  # fmt: skip
    assert [(row["step"], row["val/loss"]) for row in found if "val/loss" in row] == [(3, 4.0)]
    assert "Once upon" in json.dumps([row["sample"] for row in found if "sample" in row])


def read_trackio(folder: Path) -> list[dict]:
    """What the database holds of the one run in it, in the order of the steps."""
    program = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = SQLiteStorage.get_run_records('stepladder')\n"
        "print(json.dumps(SQLiteStorage.get_logs('stepladder', run['name'], run_id=run['id'])))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(folder)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return sorted(json.loads(result.stdout.splitlines()[-1]), key=lambda row: row["step"])


@pytest.mark.parametrize(("option", "module"), [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch, option: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"is not installed; install it with: pip install {option}"):
        watching(tmp_path, **{option: True})


def test_neither_is_imported_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def watched(name: str, *rest: object) -> object:
        assert name.split(".")[0] not in ("tensorboard", "trackio") and "tensorboard" not in name
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", watched)
    with watching(tmp_path) as watch:
        take(watch, 1)


def test_a_sink_that_fails_is_left_off_and_the_run_goes_on(tmp_path: Path) -> None:
    class Broken:
        name = "Board"
        calls = 0

        def scalars(self, step: int, values: dict[str, float]) -> None:
            self.calls += 1
            raise RuntimeError("its disk is full")

    console, broken = plain(), Broken()
    with watching(tmp_path, console) as watch:
        watch._sinks.append(broken)
        take(watch, 1, 2, 3)
    assert broken.calls == 1 and shown(console).count("Board failed and is left off: its disk is full") == 1
    assert len(load_run(tmp_path).steps) == 3
