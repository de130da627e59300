"""Compiles a kernel's launches for cards that are not here, and reads from the result what it would take of them.

    python -m tests.kernels.ahead 80,90 tests.kernels.launches.cross_entropy tests.kernels.launches.adamw

A module has ``LAUNCHES``: name -> (configurations, function that launches the kernel in a given configuration). Each is
called for each of the cards with Triton's driver replaced by one that names the card: everything up to the launch
happens as it would there, specialisation on alignment and on integers included, and the launch does not. Must run
without TRITON_INTERPRET. Prints one JSON list of `Compiled`.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0))


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel, compiled for one card in one configuration.

    Args:
        module: whose launch it is.
        launch: which of them.
        kernel: the function's name.
        capability: of the card.
        configuration: written out.
        registers: per thread.
        spilled_bytes: of stack and local memory per thread, where registers were too few.
        shared_bytes: per block.
        shared_limit_bytes: what the configuration declares, and the card has.
        narrow: places in the code where a thread reads or writes less than 8 bytes of global memory.
    """

    module: str
    launch: str
    kernel: str
    capability: tuple[int, int]
    configuration: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    shared_limit_bytes: int
    narrow: int


class Card:
    """As much of Triton's driver as is asked before a launch."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.number = capability[0] * 10 + capability[1]

    def get_current_device(self) -> int:
        return self.number  # what was compiled is kept per device: cards must not share it

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.number, 32)


def compile_launches(cards: Sequence[tuple[int, int]], modules: Sequence[str]) -> list[Compiled]:
    """Every launch of some modules in every configuration that these cards' tuner may pick."""
    import triton
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from kernels.launching import SHARED_KIB, usable

    made = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **keywords):
        made.append((self.__name__, run(self, *args, grid=grid, warmup=True, **keywords)))
        return made[-1][1]

    JITFunction.run = compile_only
    launches = {(m, name): launch for m in modules for name, launch in importlib.import_module(m).LAUNCHES.items()}
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    found = []
    for capability in cards:
        driver.set_active(Card(capability))
        for (module, launch), (configurations, function) in launches.items():
            for configuration in usable(configurations, capability):
                made.clear()
                function(configuration)
                for kernel, compiled in made:
                    registers, spilled = resources(tool, compiled.asm["cubin"])
                    found.append(
                        Compiled(
                            module=module,
                            launch=launch,
                            kernel=kernel,
                            capability=capability,
                            configuration=str(configuration.keywords),
                            registers=registers,
                            spilled_bytes=spilled,
                            shared_bytes=compiled.metadata.shared,
                            shared_limit_bytes=min(configuration.shared_kib, SHARED_KIB[capability]) * 1024,
                            narrow=sum(width < 64 for width in access_bits(compiled.asm["ptx"])),
                        )
                    )
    return found


def resources(tool: Path, cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) per thread of the one kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]


def access_bits(ptx: str) -> list[int]:
    """What each load from and store to global memory moves per thread: ld.global.b16 16, st.global.v4.b32 128."""
    found = re.findall(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    return [int(count or 1) * int(bits) for count, bits in found]


if __name__ == "__main__":
    cards = [(int(number[:-1]), int(number[-1])) for number in sys.argv[1].split(",")]
    print(json.dumps([asdict(c) for c in compile_launches(cards, sys.argv[2:])]))
