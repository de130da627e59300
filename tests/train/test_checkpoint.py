"""Checkpoints: what is saved is loaded bit by bit, old ones go and the best stays, and a wrong call says what is wrong."""

import json
import math
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.train.checkpoints import FILES, bits, contents, forge_manifest, is_of, save, state, write_manifest
from train import checkpoint
from train.checkpoint import CheckpointError
from train.checkpoint_format import DTYPES, HEADER_LIMIT, STATE_LIMIT, folder_name, to_safetensors


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "first" / "checkpoints"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def no_warning(line):
    pytest.fail(line)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_the_layout_is_as_described(folder):
    path = save(folder, 100)
    assert path == folder / "step-00000100" and names(folder) == [path.name] and names(path) == list(FILES)
    assert json.loads((path / "state.json").read_text()) == state(100)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 100 and set(manifest["files"]) == set(FILES) - {"manifest.json"}
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (path / "state.json").stat().st_mode & 0o777 == 0o666 & ~umask


def every_kind_of_tensor():
    named = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    shared = torch.randn(4, 4)
    return named | {
        "not a number": torch.tensor([math.nan, -0.0, math.inf, -math.inf, 1e-45]),
        "a NaN of its own": torch.tensor([0x7FC12345, -1], dtype=torch.int32).view(torch.float32),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "odd bytes": torch.tensor([True, False, True]),
        "transposed": shared.t(),
        "strided": shared[:, ::2],
        "tied": shared,
        "tied again": shared,
        "part": shared[1:3],
        "learned": torch.nn.Parameter(torch.randn(3)),
        'näme / with "quotes" and \n': torch.ones(1),
    }


def test_every_kind_of_tensor_comes_back_bit_by_bit(folder):
    given = every_kind_of_tensor()
    path = checkpoint.save(folder, step=0, tensors={"model": given}, state={})
    assert bits(checkpoint.load(path).tensors["model"]) == bits(given)
    assert bits(load_file(path / "model.safetensors")) == bits(given), "the library itself reads it too"


def test_the_file_is_what_the_library_would_write():
    given = {"b": torch.randn(3), "a": torch.randn(2, 2), "h": torch.ones(5).half(), "i": torch.arange(3)}
    content = b"".join(bytes(part) for part in to_safetensors("model", given))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and list(header) == ["i", "a", "b", "h"], "wide types first, then by name: all aligned"
    assert [entry["data_offsets"][0] for entry in header.values()] == [0, 24, 40, 52]


def test_a_loaded_tensor_can_be_changed_and_its_file_stays(folder):
    path = save(folder, 1)
    found = checkpoint.load(path)
    found.tensors["model"]["wte.weight"].fill_(7)
    checkpoint.rotate(folder, keep=1)
    assert is_of(checkpoint.load(path), 1, 1)


def test_only_the_named_groups_are_read(folder):
    path = save(folder, 1)
    flip_a_bit(path / "optimizer.safetensors")
    assert checkpoint.load(path, names=["model"]).tensors.keys() == {"model"}
    assert checkpoint.newest(folder, no_warning, names=["model"]).step == 1
    with pytest.raises(CheckpointError, match=r"has no tensors named \['ema'\]; it has \['model', 'optimizer'\]"):
        checkpoint.load(path, names=["ema", "model"])
    (path / "optimizer.safetensors").write_bytes(b"")  # a wrong size is seen all the same
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors: is damaged: shorter than the"):
        checkpoint.load(path, names=["model"])


def test_an_identical_checkpoint_is_left(folder):
    path = save(folder, 1)
    before = path.stat().st_ino
    assert save(folder, 1) == path and path.stat().st_ino == before and names(folder) == [path.name]


@pytest.mark.parametrize("damaged", FILES)
def test_a_damaged_checkpoint_of_the_same_step_is_replaced(folder, damaged):
    path = save(folder, 1)
    flip_a_bit(path / damaged)
    save(folder, 1)
    assert is_of(checkpoint.load(path), 1, 1) and names(folder) == [path.name]


def test_another_checkpoint_of_the_same_step_is_replaced_and_stays_the_best(folder):
    path = save(folder, 1)
    checkpoint.mark_best(folder, 1)
    save(folder, 1, seed=2)
    assert is_of(checkpoint.load(path), 1, 2) and checkpoint.best(folder) == path


def test_a_file_in_the_way_is_replaced(folder):
    folder.mkdir(parents=True)
    (folder / "step-00000001").write_text("not a folder")
    with pytest.raises(CheckpointError, match="step-00000001: is not a checkpoint's folder"):
        checkpoint.load(folder / "step-00000001")
    assert is_of(checkpoint.load(save(folder, 1)), 1, 1) and names(folder) == ["step-00000001"]


CIRCULAR: list = []
CIRCULAR.append(CIRCULAR)
DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]
NOT_JSON = {
    "nan": math.nan, "infinity": [{"best_loss": math.inf}], "tuple": (1, 2), "number as key": {1: 2},
    "deep": DEEP, "bytes": b"x", "tensor": torch.ones(1), "circular": CIRCULAR, "digits": 10**5000,
}  # fmt: skip


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_state_that_json_cannot_keep_is_refused_before_anything_is_written(folder, value):
    with pytest.raises(CheckpointError, match="state cannot be kept as JSON: .*finite numbers, None for infinity"):
        checkpoint.save(folder, step=1, tensors={}, state={"key": value})
    assert not folder.exists()


def test_state_has_a_size_and_is_an_object(folder):
    with pytest.raises(CheckpointError, match=r"state has 1,048,\d+ bytes of 1,048,576; keep what is large as tensors"):
        checkpoint.save(folder, step=1, tensors={}, state={"x": "y" * STATE_LIMIT})
    with pytest.raises(CheckpointError, match="state cannot be kept"):
        checkpoint.save(folder, step=1, tensors={}, state=[])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": -1}, "step is -1; it must be a whole number"),
        ({"step": 1.0}, "step is 1.0; it must be a whole number"),
        ({"tensors": {"../x": {}}}, "tensors has the group '../x'"),
        ({"tensors": {"model": {"w": torch.ones(2).to_sparse()}}}, "tensor 'w' of 'model' is torch.float32, torch.sparse"),
        ({"tensors": {"model": {"w": torch.ones(2, dtype=torch.complex64)}}}, "tensor 'w' of 'model' is torch.complex64"),
        ({"tensors": {"model": {"__metadata__": torch.ones(2)}}}, "tensor '__metadata__' of 'model'"),
        ({"tensors": {"model": {"w" * HEADER_LIMIT: torch.ones(2)}}}, "'model' has 1 tensors, too many for one file"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_and_nothing_is_left(folder, wrong, message):
    save(folder, 1)
    before = contents(folder)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.save(folder, **({"step": 2, "tensors": {}, "state": {}} | wrong))
    assert contents(folder) == before and names(folder) == ["step-00000001"]


def test_newest_takes_the_valid_one_with_the_most_steps_and_says_what_it_skips(folder):
    assert checkpoint.newest(folder, no_warning) is None
    for step in (9, 100, 99_999_999, 100_000_000):
        save(folder, step)
    (folder / "step-7").mkdir()  # no checkpoint's name
    assert checkpoint.newest(folder, no_warning).step == 100_000_000
    flip_a_bit(folder / "step-100000000" / "model.safetensors")
    (folder / "step-99999999" / "state.json").unlink()
    warnings = []
    assert is_of(checkpoint.newest(folder, warnings.append), 100, 100)
    assert [line.count("\n") for line in warnings] == [0, 0]
    assert "step-100000000/model.safetensors: is damaged: its SHA-256 is not the one in manifest.json" in warnings[0]
    assert "step-99999999/state.json: cannot be read: No such file or directory" in warnings[1]


def test_an_unreadable_file_is_skipped_too(folder, monkeypatch):
    save(folder, 1), save(folder, 2)
    real = os.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith("step-00000002/state.json"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    warnings = []
    assert checkpoint.newest(folder, warnings.append).step == 1
    assert "step-00000002/state.json: cannot be read: Permission denied" in warnings[0]


def test_rotate_keeps_the_last_and_the_best_and_what_is_not_its_own(folder):
    for step in (1, 2, 3, 4, 5):
        save(folder, step)
    checkpoint.mark_best(folder, 2)
    (folder / "notes.txt").write_text("mine")
    checkpoint.rotate(folder, keep=2)
    assert names(folder) == ["best", "notes.txt", "step-00000002", "step-00000004", "step-00000005"]
    checkpoint.rotate(folder, keep=9)
    checkpoint.mark_best(folder, 5)
    checkpoint.rotate(folder, keep=1)
    assert names(folder) == ["best", "notes.txt", "step-00000005"]
    with pytest.raises(ValueError, match="keep is 0; it must be at least 1"):
        checkpoint.rotate(folder, keep=0)


def test_rotate_keeps_the_one_written_last_behind_damaged_ones_of_more_steps(folder):
    """Steps 3 and 4 are damaged, the run goes on from 1, and 2 must not fall to those that cannot be loaded."""
    for step in (1, 3, 4):
        save(folder, step)
        os.utime(folder / folder_name(step), ns=(step, step))
    for step in (3, 4):
        flip_a_bit(folder / folder_name(step) / "model.safetensors")
    save(folder, 2)
    checkpoint.rotate(folder, keep=1)
    assert checkpoint.newest(folder, lambda line: None).step == 2


def test_rotate_where_nothing_is_yet(folder):
    checkpoint.rotate(folder, keep=1)
    assert names(folder) == []


def test_the_best_is_marked_moved_and_loaded(folder):
    assert checkpoint.best(folder) is None
    first, second = save(folder, 1), save(folder, 2)
    checkpoint.mark_best(folder, 1)
    assert checkpoint.best(folder) == first and is_of(checkpoint.load(folder / "best"), 1, 1)
    checkpoint.mark_best(folder, 2)
    assert checkpoint.best(folder) == second and names(folder) == ["best", first.name, second.name]
    with pytest.raises(CheckpointError, match="step-00000003: there is no such checkpoint; save it before"):
        checkpoint.mark_best(folder, 3)
    assert checkpoint.best(folder) == second


def test_no_flipped_bit_makes_another_checkpoint_the_best(folder):
    for step in range(10):
        save(folder, step)
    checkpoint.mark_best(folder, 5)
    good = (folder / "best").read_bytes()
    for place in range(len(good) * 8):
        content = bytearray(good)
        content[place // 8] ^= 1 << place % 8
        (folder / "best").write_bytes(content)
        assert checkpoint.best(folder) in (None, folder / "step-00000005")
    (folder / "best").write_bytes(b"")
    assert checkpoint.best(folder) is None
    with pytest.raises(CheckpointError, match="best: is not a checkpoint's folder"):
        checkpoint.load(folder / "best")


@pytest.mark.parametrize("name", ["..", "../../other", "/etc", "step-00000001/..", "best"])
def test_the_best_is_a_checkpoint_beside_it_and_nothing_else(folder, name):
    save(folder, 1)
    (folder / "best").write_text(f"{name} {checkpoint._checksum(name)}\n")
    assert checkpoint.best(folder) is None


def test_a_best_that_was_deleted_is_none(folder):
    path = save(folder, 1)
    checkpoint.mark_best(folder, 1)
    path.rename(folder / "elsewhere")
    assert checkpoint.best(folder) is None


def test_leftovers_go_and_what_was_to_be_replaced_comes_back(folder):
    for step in (1, 2, 3, 4):
        save(folder, step)
    (folder / "step-00000001").rename(folder / ".trash-step-00000001")
    (folder / "step-00000002").rename(folder / ".old-step-00000002")  # its successor never took its place: it returns
    (folder / "step-00000003").rename(folder / ".old-step-00000004")  # this one's successor is there: it goes
    (folder / ".tmp-step-00000005").mkdir()
    (folder / ".tmp-best").write_text("half")
    (folder / ".tmp-link").symlink_to(folder.parent)
    (folder / ".hidden").write_text("mine")
    checkpoint.clean_leftovers(folder)
    assert names(folder) == [".hidden", "step-00000002", "step-00000004"]
    assert [checkpoint.load(folder / name).step for name in names(folder)[1:]] == [2, 4]


def test_leftovers_are_in_nobodys_way(folder):
    for step in (1, 2):
        save(folder, step)
    for hidden in (".tmp-step-00000003", ".trash-step-00000001", ".tmp-best"):
        (folder / hidden).mkdir()
        (folder / hidden / "half").write_text("half")
    save(folder, 3)
    assert names(folder) == ["step-00000001", "step-00000002", "step-00000003"]
    (folder / ".trash-step-00000001").mkdir()
    (folder / ".trash-step-00000001" / "half").write_text("half")
    checkpoint.rotate(folder, keep=1)
    assert names(folder) == ["step-00000003"]


def test_a_saved_checkpoint_is_saved_even_if_the_one_it_replaced_cannot_be_deleted(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    path = save(folder, 1)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.files, "remove", refuse)
        assert save(folder, 1, seed=2) == path
    assert is_of(checkpoint.load(path), 1, 2)
    assert names(folder) == [".old-step-00000001", path.name]
    checkpoint.clean_leftovers(folder)
    assert names(folder) == [path.name] and is_of(checkpoint.load(path), 1, 2)


def test_a_checkpoint_moved_to_another_step_is_noticed(folder):
    save(folder, 1).rename(folder / "step-00000002")
    with pytest.raises(CheckpointError, match="manifest.json: is of step 1, but lies in step-00000002"):
        checkpoint.load(folder / "step-00000002")


def test_nothing_at_all_is_no_checkpoint(folder):
    with pytest.raises(CheckpointError, match="step-00000001: is not a checkpoint's folder, like runs/NAME/"):
        checkpoint.load(folder / "step-00000001")


def test_a_checkpoint_of_another_version_says_so(folder):
    path = save(folder, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    write_manifest(path, {**manifest, "format": 2})
    with pytest.raises(CheckpointError, match="manifest.json: has format 2; this version reads 1"):
        checkpoint.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def exactly(value):
    """Tells 1 from True and from 1.0, and 0.0 from -0.0, which `==` does not."""
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return type(value), value.hex() if isinstance(value, float) else value


@settings(max_examples=60, deadline=None)
@given(given=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_state_comes_back_exactly(tmp_path_factory, given):
    path = checkpoint.save(tmp_path_factory.getbasetemp() / "any", step=1, tensors={}, state=given)
    assert exactly(checkpoint.load(path).state) == exactly(given)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FILES),
    content=st.binary(max_size=300) | JSON.map(lambda data: (json.dumps(data) + "\n").encode()),
    forged=st.booleans(),
)
def test_any_bytes_in_a_file_raise_our_error_alone(tmp_path_factory, name, content, forged):
    folder = tmp_path_factory.getbasetemp() / "bytes"
    path = save(folder, 1)  # replaces what the example before has damaged
    (path / name).write_bytes(content)
    if forged and name != "manifest.json":
        forge_manifest(path)
    try:
        found = checkpoint.load(path)
    except CheckpointError as error:
        assert str(path / name) in str(error) and "\n" not in str(error)
    else:  # forged around JSON that is fine
        assert forged and name == "state.json" and isinstance(found.state, dict)
