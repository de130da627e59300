import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from hardware import environment
from hardware.device import Device, detect
from hardware.environment import capture, git_state, source_hash, speed_variables

ROOT = Path(__file__).resolve().parents[2]
GPU = Device(kind="cuda", name="NVIDIA H100 80GB HBM3", slug="x", memory_bytes=2**33, capability=(9, 0), count=1)


def test_capture_is_plain_json_and_names_no_place_no_person_no_machine(monkeypatch):
    home = str(Path.home())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{home}/cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/tmp/someone")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", socket.gethostname())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(environment.socket, "gethostname", socket.gethostname)
    monkeypatch.setattr(environment.platform, "release", lambda: "6.8.0-12-built-by-someone")
    found = capture(detect("cpu"), ROOT)
    text = json.dumps(found, allow_nan=False)
    for secret in (home, str(ROOT), "/tmp", socket.gethostname(), "someone"):
        assert secret not in text
    assert not re.search(r"[\"/ ](home|Users|tmp|root)/", text)
    assert found["os"] == "Linux 6.8.0" or not found["os"].startswith("Linux")
    assert found["variables"]["OMP_NUM_THREADS"] == "2"
    assert found["variables"]["TRITON_CACHE_DIR"] == found["variables"]["NCCL_SOCKET_IFNAME"] == "set"
    for key in ("torch", "numpy", "python", "cpu", "harness_sha256"):
        assert found[key]
    for key in ("commit", "dirty", "triton", "cuda", "cudnn", "memory_bytes", "cpu_cores", "threads", "device"):
        assert key in found


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("CUDA_VISIBLE_DEVICES", "0,1", "0,1"),
        ("CUDA_VISIBLE_DEVICES", "", ""),
        ("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "set"),
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128,expandable_segments:True", None),
        ("TORCH_LOGS", "+dynamo", None),
        ("TORCHINDUCTOR_CACHE_DIR", "~/cache", "set"),
        ("TRITON_CACHE_DIR", "C:\\Users\\ada", "set"),
        ("NCCL_COMM_ID", "10.1.2.3:29500", "set"),
        ("NCCL_COMM_ID", "fe80::1", "set"),
        ("TORCH_HOME", "ada@example.org", "set"),
        ("NCCL_SOCKET_IFNAME", "box-7", "set"),
        ("NCCL_SOCKET_IFNAME", "ada", "set"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so", "set"),
    ],
)
def test_variables_keep_settings_and_hide_places_and_names(monkeypatch, name, value, kept):
    monkeypatch.setattr(environment.socket, "gethostname", lambda: "box-7")
    monkeypatch.setattr(environment.getpass, "getuser", lambda: "ada")
    assert speed_variables({name: value}) == {name: value if kept is None else kept}


def test_other_variables_are_not_recorded(monkeypatch):
    assert speed_variables({"HF_TOKEN": "x", "AWS_SECRET": "x", "HOME": "/x", "PATH": "/x", "MY_TORCH": "1"}) == {}

    def nobody():
        raise KeyError("uid")

    monkeypatch.setattr(environment.getpass, "getuser", nobody)
    assert speed_variables({"OMP_NUM_THREADS": "4"}) == {"OMP_NUM_THREADS": "4"}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    for name in ("bench/a.py", "results/records/cpu/1.json", "plots/gallery/1.png", "README.md", "LOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_text("runs/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_git_state_of_a_clean_tree_and_of_new_results(repository):
    clean = {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}
    assert git_state(repository) == clean
    (repository / "results/records/cpu/2.json").write_text("new record")
    (repository / "plots/gallery/1.png").write_text("redrawn")
    (repository / "README.md").write_text("new table")
    (repository / "LOG.md").write_text("new entry")
    (repository / "runs").mkdir()
    (repository / "runs/x").write_text("ignored")
    assert git_state(repository) == clean


@pytest.mark.parametrize("change", ["bench/a.py", "bench/new.py", "model/new.py", "conftest.py"])
def test_a_changed_or_new_source_makes_the_tree_dirty(repository, change):
    (repository / change).parent.mkdir(exist_ok=True)
    (repository / change).write_text("changed")
    assert git_state(repository)["dirty"] is True


def test_git_state_where_there_is_nothing_to_say(repository, tmp_path_factory, monkeypatch):
    nothing = {"commit": None, "dirty": None}
    assert git_state(repository / "bench") == nothing, "a folder inside some other repository is not its commit"
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(empty.parent))
    assert git_state(empty) == nothing
    git(empty, "init", "-q")
    assert git_state(empty) == nothing, "no commit yet"
    monkeypatch.setenv("PATH", str(empty))
    assert git_state(repository) == nothing, "no git"


def test_source_hash_follows_names_and_contents_of_the_named_packages_only(tmp_path):
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("bench/a.py", "1")
    write("bench/deep/b.py", "2")
    first = source_hash(tmp_path, ["bench", "model"])
    write("bench/notes.md", "text")
    write("other/c.py", "3")
    assert source_hash(tmp_path, ["model", "bench"]) == first and len(first) == 64
    seen = {first}
    for name, text in (("bench/a.py", "1 "), ("bench/deep/b.py", "2 "), ("model/d.py", ""), ("bench/e.py", "")):
        write(name, text)
        seen.add(source_hash(tmp_path, ["bench", "model"]))
    assert len(seen) == 5
    (tmp_path / "bench/a.py").rename(tmp_path / "bench/z.py")
    assert source_hash(tmp_path, ["bench", "model"]) not in seen


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "gpu_id", lambda index: "0")

    def install(line: str) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_gpu_state(nvidia_smi):
    nvidia_smi("echo '575.57.08, 700.00, Enabled, 1980, 2619, 345, [N/A]'")
    assert environment._gpu_state(GPU) == {
        "driver": "575.57.08",
        "power_limit_w": 700.0,
        "persistence_mode": "Enabled",
        "sm_clock_max_mhz": 1980.0,
        "memory_clock_max_mhz": 2619.0,
        "sm_clock_mhz": 345.0,
        "memory_clock_mhz": None,
    }


@pytest.mark.parametrize("line", ["echo 'No devices were found'; exit 6", "echo 'a, b'", "exit 0"])
def test_gpu_state_unknown(nvidia_smi, line):
    nvidia_smi(line)
    assert set(environment._gpu_state(GPU).values()) == {None}
