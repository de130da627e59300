"""Every kernel compiled for every supported card, in every configuration its tuner may pick there: no spills, no more
shared memory than there is.

Compiling is what takes time: two processes share the cards.
"""

import ast
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kernels
from tests.kernels import launches
from tests.kernels.ahead import CAPABILITIES, Compiled, access_bits

ROOT = Path(__file__).resolve().parents[2]
FILES = [module.name for module in pkgutil.iter_modules(launches.__path__)]
LAUNCHES, MISFITS = launches.__name__, "tests.kernels.misfits"


def kernels_in(name: str) -> set[str]:
    """Names of the kernels in a file: its ``@triton.jit`` functions called …_kernel; the others are parts of those."""
    body = ast.parse((ROOT / f"kernels/{name}.py").read_text()).body
    jitted = [f for f in body if isinstance(f, ast.FunctionDef) and "triton.jit" in map(ast.unparse, f.decorator_list)]
    return {f.name for f in jitted if f.name.endswith("_kernel")}


@pytest.fixture(autouse=True)
def interpreter() -> None:
    """None is needed here."""


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    """All launches, compiled by two processes, each for some of the cards."""
    with ThreadPoolExecutor() as pool:
        return [c for part in pool.map(compile_apart, (CAPABILITIES[::2], CAPABILITIES[1::2])) for c in part]


def compile_apart(cards: Sequence[tuple[int, int]]) -> list[Compiled]:
    """In a process of its own, because this one may be interpreting."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # which takes time and nobody reads
    numbers = ",".join(f"{major}{minor}" for major, minor in cards)
    command = [sys.executable, "-m", "tests.kernels.ahead", numbers, *(f"{LAUNCHES}.{name}" for name in FILES), MISFITS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [Compiled(**{**c, "capability": tuple(c["capability"])}) for c in json.loads(done.stdout.splitlines()[-1])]


def complaints(made: list[Compiled]) -> list[str]:
    wrong = [f"{c} spills" for c in made if c.spilled_bytes]
    return wrong + [f"{c} asks for too much shared memory" for c in made if c.shared_bytes > c.shared_limit_bytes]


def test_every_file_with_kernels_has_launches() -> None:
    assert {m.name for m in pkgutil.iter_modules(kernels.__path__) if kernels_in(m.name)} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_it_fits_every_card(name: str, compiled: list[Compiled]) -> None:
    made = [c for c in compiled if c.module == f"{LAUNCHES}.{name}"]
    assert {c.kernel for c in made} == kernels_in(name)
    assert {c.capability for c in made} == set(CAPABILITIES)
    assert not complaints(made)


def test_a_kernel_that_does_not_fit_is_found(compiled: list[Compiled]) -> None:
    """One that holds a whole row in registers spills, one takes more shared memory than it said."""
    made = [c for c in compiled if c.module == MISFITS]
    assert {c.launch for c in made if c.spilled_bytes} == {"a whole row in registers"}
    assert {c.launch for c in made if c.shared_bytes > c.shared_limit_bytes} == {"large tiles"}
    assert len(complaints(made)) == len(made) == 2 * len(CAPABILITIES)


def test_tensors_are_moved_in_wide_words(compiled: list[Compiled]) -> None:
    """But for a number per row here and there. A mask that ends at an odd column makes a load of each number."""
    made = [c for c in compiled if c.module != MISFITS]
    odd = [c for c in made if "odd" in c.launch]
    assert odd and all(c.narrow >= 16 for c in odd)  # tensors whose addresses allow nothing else
    assert [c for c in made if c not in odd and c.narrow >= 16] == []


def test_widths_are_read_from_the_code() -> None:
    code = """
        @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
        @%p2 st.global.b16 [ %rd2 + 2 ], { %rs1 };
        ld.global.L1::evict_last.v2.b64 { %rd3, %rd4 }, [ %rd5 ]; ld.shared.b8 %r6, [ %r7 ];
    """
    assert access_bits(code) == [128, 16, 128]
