"""The command line as a user meets it."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import stepladder.cli
import stepladder.compare
import stepladder.ladder
import stepladder.plot
from hardware import detect
from optim_ladder import LADDER
from results import store
from stepladder.cli import COMMANDS, GROUPS, main
from tests.factories import make_record

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two records of an H100 that never was; every command looks for records here."""
    folder = tmp_path / "records"
    for seed in (1, 2):
        store.write(make_record("h100", seed=seed), folder)
    for module in (stepladder.compare, stepladder.ladder, stepladder.plot):
        monkeypatch.setattr(module, "RECORDS", folder)
    monkeypatch.setattr(stepladder.compare.find, "__defaults__", (folder,))
    return folder


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_names_every_command(capsys) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(command in out for command in ("ladder", "plot", "compare"))
    for command in ("ladder", "plot", "compare"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0 and "Usage: stepladder" in out


def test_ladder_says_what_can_run_here_and_why_not(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, "ladder", "--device", "cpu")
    assert code == 0
    text = " ".join(out.split())
    for rung in LADDER:
        assert rung.name in text
    assert "yes" in text and "needs the tensor cores" in text


@pytest.mark.parametrize("rung", [r.name for r in LADDER])
def test_explain_tells_the_essay_the_source_and_the_bounds(capsys, rung: str) -> None:
    code, out, _ = run(capsys, "ladder", "--explain", rung, "--device", "cpu")
    chosen = next(r for r in LADDER if r.name == rung)
    text = " ".join(out.split())
    assert code == 0 and " ".join(chosen.essay.split()) in text and chosen.source in text
    assert f"May move the loss by {chosen.drift.loss:g} nats" in text


def test_explain_tells_what_was_measured_on_this_device(capsys, records: Path, monkeypatch) -> None:
    here, record = detect("cpu"), make_record("cpu")
    code, out, _ = run(capsys, "ladder", "--explain", "flash", "--device", "cpu")
    assert code == 0 and "Not measured on" in out
    store.write(replace(record, device={**record.device, "slug": here.slug}), records)
    code, out, _ = run(capsys, "ladder", "--explain", "flash", "--device", "cpu")
    assert code == 0 and "cumulative:" in out and "tok/s" in out


def test_compare_takes_parts_of_names(capsys, records: Path) -> None:
    a, b = sorted(records.glob("*/*.json"))
    code, out, _ = run(capsys, "compare", a.name[-17:], str(b))
    assert code == 0 and "no difference" in out


def test_plot_draws_and_says_what_it_skipped(capsys, records: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stepladder.plot, "GALLERY", tmp_path / "gallery")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- generated:ladder -->\n<!-- /generated -->\n")
    monkeypatch.setattr(stepladder.plot, "README", readme)
    (next(records.glob("*")) / "foreign.json").write_text("{}")
    code, out, err = run(capsys, "plot")
    assert code == 0 and "ladder.png" in out and "README.md" in out
    assert "skipped:" in err and "foreign.json" in err
    assert "tokens/s" in readme.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lader"], "error: unknown command 'lader': did you mean 'ladder'? choose from " + ", ".join([*COMMANDS, *GROUPS])),
        (["eval", "hellaswagg"], "unknown command 'hellaswagg': did you mean 'hellaswag'? choose from hellaswag, loss\n"),
        (["tokenizer", "trian"], "error: unknown command 'trian': did you mean 'train'? choose from train, show\n"),
        (["ladder", "--explain", "flsh"], "error: unknown rung 'flsh': did you mean 'flash'?"),
        (["ladder", "--profile", "a31"], "error: unknown profile 'a31': did you mean 'a30'?"),
        (["ladder", "--device", "tpu"], "error: kind is 'tpu'; choose one of cuda, mps, cpu"),
        (["ladder", "--explian"], "error: No such option: --explian"),
        (["compare", "nowhere", "nobody"], "error: no record 'nowhere' under records/; the newest are"),
        (["compare", "_", "_"], "error: record '_' could be"),
        (["compare", "one"], "error: Missing argument"),
        (["plot", "--device", "h1000"], "error: no records of device 'h1000'; there are: "),
        (["plot", "--results-dir", "/nowhere"], "error: no records in /nowhere/records; make one with: pytest --benchmark"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, records: Path, arguments: list[str], words: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert words in err
    assert err.count("\n") == 1


def test_a_damaged_record_is_named(capsys, records: Path) -> None:
    path = next(records.glob("*/*.json"))
    path.write_bytes(path.read_bytes()[:-20])
    code, _, err = run(capsys, "compare", str(path), str(path))
    assert code == 2 and path.name in err and err.count("\n") == 1


def test_plot_and_compare_work_where_torch_is_not_installed(tmp_path: Path) -> None:
    path = store.write(make_record(), tmp_path / "records")
    for arguments in (["plot", "--results-dir", str(tmp_path)], ["compare", str(path), str(path)]):
        program = (
            "import sys; sys.modules['torch'] = None\n"  # importing it now raises ImportError
            f"from stepladder.cli import COMMANDS, GROUPS, main; sys.exit(main({arguments!r}))"
        )
        result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr


def test_a_closed_pipe_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m stepladder ladder --device cpu | head -n 1"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stderr == ""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (BrokenPipeError(32, "Broken pipe"), 0),
        (KeyboardInterrupt(), 130),
        (SystemExit(3), SystemExit),
        (RuntimeError("x"), RuntimeError),
    ],
)
def test_however_typer_tells_it(monkeypatch, tmp_path: Path, ending: BaseException, code: int | type) -> None:
    """Some versions make an exit of a closed pipe, some an error of their own of Ctrl-C; a fault of ours stays one."""

    def app(*arguments: object, **more: object) -> None:
        try:
            raise ending
        except BrokenPipeError:
            sys.exit(1)
        except KeyboardInterrupt as error:
            raise RuntimeError("typer's Abort is one") from error

    monkeypatch.setattr(stepladder.cli, "app", app)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        if isinstance(code, int):
            assert main([]) == code
        else:
            with pytest.raises(code):
                main([])


def test_streams_that_were_closed_before_the_start_are_no_crash(monkeypatch, tmp_path: Path) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["tokenizer", "show", "bytes", "abc"]) == 0
    assert main(["clean", "--runs", str(tmp_path), "--corpora", str(tmp_path)]) in (0, 2)
    assert main(["lader"]) == 2


def test_a_character_that_the_terminal_lacks_costs_no_result(monkeypatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["tokenizer", "show", "bytes", "aé"]) == 0
    out.flush()
    shown = out.buffer.getvalue().decode("latin-1")
    assert r"97  'a'" in shown and r"195  '\ufffd'" in shown


def test_no_command_at_all_shows_the_help(capsys) -> None:
    code, out, err = run(capsys)
    assert code == 2 and "Usage: stepladder" in out + err and "error:" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run-dir", "{file}"], "{file}: a file stands where a folder is needed; move that file"),
        (["--corpora", "{file}"], "{file}"),
        (["--recipe", "{folder}"], "the recipe '{folder}' cannot be read: Is a directory; give a TOML file"),
        (["--run-dir", "."], "the folder you are in; give the run one of its own"),
        (["--set", "data.corpus="], "data.corpus is empty; name a corpus"),
        (["--recipe", "recipes/char-bigram.toml"], "the model is 'gpt2', but recipes/char-bigram.toml trains char-bigram"),
    ],
)
def test_wrong_places_are_told_in_a_line(capsys, tmp_path: Path, monkeypatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").write_text("in the way")
    names = {"file": tmp_path / "file", "folder": tmp_path}
    if not any(a in arguments for a in ("--run-dir", "--recipe")):
        arguments = [*arguments, "--run-dir", "{folder}/run"]
    code, _, err = run(capsys, "train", "gpt2", "--device", "cpu", "--steps", "1", *(a.format(**names) for a in arguments))
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1
    assert said.format(**names) in err and "Errno" not in err
