import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hardware import device as device_module
from hardware.device import Device, cpu_name, detect, slugify, system_memory, usable_cores


def gpu(capability: tuple[int, int], name: str = "NVIDIA H100 80GB HBM3") -> Device:
    return Device(
        kind="cuda", name=name, slug=slugify(name), memory_bytes=80 * 2**30, capability=capability, count=1
    )


def test_importing_hardware_does_not_import_torch():
    code = "import sys, hardware; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cpu_is_detected_with_usable_cores_and_a_clean_slug():
    device = detect("cpu")
    assert device.kind == "cpu" and device.capability is None
    assert device.count == device_module.usable_cores() >= 1
    assert device.memory_bytes > 2**28
    assert device.slug.startswith("cpu-") and slugify(device.slug) == device.slug
    assert device.slug.endswith("cores" if device.count > 1 else "core")
    assert device.torch_device() == torch.device("cpu")
    device.synchronize()


def test_a_cuda_gpu_is_preferred_and_described(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", total_memory=85_000_000_000, major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    found = detect()
    assert found == Device(
        kind="cuda",
        name="NVIDIA A100-SXM4-80GB",
        slug="nvidia-a100-sxm4-80gb",
        memory_bytes=85_000_000_000,
        capability=(8, 0),
        count=4,
    )
    assert found.torch_device(2) == torch.device("cuda", 2)
    assert detect("cpu").kind == "cpu"


def test_asking_for_what_is_not_there_names_what_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda'.*no such device.*cpu"):
        detect("cuda")
    with pytest.raises(ValueError, match="'tpu'; choose one of cuda, mps, cpu"):
        detect("tpu")


@pytest.mark.parametrize(
    ("capability", "formats"),
    [
        ((7, 5), {"fp32", "fp16"}),
        ((8, 0), {"fp32", "fp16", "tf32", "bf16"}),
        ((8, 6), {"fp32", "fp16", "tf32", "bf16"}),
        ((8, 9), {"fp32", "fp16", "tf32", "bf16", "fp8"}),
        ((12, 0), {"fp32", "fp16", "tf32", "bf16", "fp8"}),
    ],
)
def test_formats_follow_compute_capability(capability, formats):
    assert {f for f in ("fp32", "fp16", "tf32", "bf16", "fp8") if gpu(capability).supports(f)} == formats


def test_formats_elsewhere():
    cpu = Device(kind="cpu", name="x", slug="x", memory_bytes=1, capability=None, count=1)
    mps = Device(kind="mps", name="x", slug="x", memory_bytes=1, capability=None, count=1)
    for device in (cpu, mps):
        assert [device.supports(f) for f in ("fp32", "bf16", "fp16", "tf32", "fp8")] == [True] * 3 + [False] * 2
    with pytest.raises(ValueError, match="'int3'; choose one of"):
        cpu.supports("int3")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz\n", "Intel Xeon Platinum 8481C"),
        ("processor\t: 0\nmodel name\t: AMD EPYC 9654 96-Core Processor\n", "AMD EPYC 9654"),
        ("model name\t: AMD EPYC\n", "AMD EPYC"),
    ],
)
def test_cpu_name_is_read_without_decoration(tmp_path, line, name):
    (tmp_path / "cpuinfo").write_text(line)
    assert cpu_name(tmp_path / "cpuinfo") == name


def test_cpu_name_falls_back_to_tools_and_then_to_the_architecture(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor : 0\nCPU implementer : 0x41\n")
    answer = SimpleNamespace(stdout="Architecture: aarch64\nModel name:   Neoverse-N1\n")
    monkeypatch.setattr(device_module.platform, "system", lambda: "Linux")
    monkeypatch.setattr(device_module.subprocess, "run", lambda *args, **kwargs: answer)
    assert cpu_name(tmp_path / "cpuinfo") == "Neoverse-N1"

    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(device_module.subprocess, "run", missing)
    monkeypatch.setattr(device_module.platform, "machine", lambda: "aarch64")
    assert cpu_name(tmp_path / "cpuinfo") == "aarch64"
    assert cpu_name(tmp_path / "no such file") == "aarch64"


def test_a_containers_limits_count(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hardware.device.CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    physical = system_memory()
    assert usable_cores() == 64
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (usable_cores(), system_memory()) == (64, physical)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    assert (usable_cores(), system_memory()) == (2, 1048576)
