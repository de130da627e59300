"""`stepladder plot RUN` as a user meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

from stepladder.cli import main
from tests.made_runs import make_run

ROOT = Path(__file__).resolve().parent.parent.parent


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_run_is_drawn_into_its_folder_or_where_told(capsys, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "nano", steps=5)
    code, out, err = run(capsys, "plot", folder)
    assert code == 0 and out.splitlines() == [f"{folder}/loss.png", f"{folder}/loss.svg"] and err == ""
    code, out, _ = run(capsys, "plot", folder / "metrics.jsonl", "--out", tmp_path / "there")
    assert code == 0 and (tmp_path / "there" / "loss.svg").is_file()


def test_several_runs_are_drawn_into_the_current_folder(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, steps=5)
    code, out, _ = run(capsys, "plot", "runs/a", "runs/b")
    assert code == 0 and out.splitlines() == ["loss-a-b.png", "loss-a-b.svg"] and Path("loss-a-b.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/nan"], "error: no run at runs/nan: there is no such folder; did you mean runs/nano?"),
        (["runs"], "error: runs is not a run: there is no metrics.jsonl in it"),
        (["runs/nano", "--device", "h100"], "error: --device is about records, and RUN 'runs/nano' is a run"),
        (["runs/nano", "--results-dir", "x"], "error: --results-dir is about records, and RUN 'runs/nano' is a run"),
        (["--out", "x"], "error: --out 'x' is for the chart of a run; give a RUN, or --results-dir for records"),
        (["runs/nano", "--out", "file"], "error: cannot write file/loss.png: File exists; choose another folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path: Path, monkeypatch, arguments, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "nano", steps=5)
    Path("file").write_text("")
    code, out, err = run(capsys, "plot", *arguments)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1


def test_plot_of_a_run_works_where_torch_is_not_installed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "nano", steps=5)
    program = (
        "import sys; sys.modules['torch'] = None\n"  # importing it now raises ImportError
        f"from stepladder.cli import main; sys.exit(main(['plot', {str(folder)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and (folder / "loss.png").is_file(), result.stderr
