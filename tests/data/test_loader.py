"""The loader: every token once, shuffled for real, the same for any number of processes, and resumable anywhere."""

import itertools
import json
import time
import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import IGNORED, Cursor, Loader, validation_windows
from data.shards import ShardError
from data.shuffle import Stream, find, permutation
from tests.data.samples import EOT, make_dataset


def documents(*lengths: int, start: int = 1) -> np.ndarray:
    """Documents of some lengths, no id twice but the mark that ends each; a length of 0 is a mark alone."""
    parts = []
    for length in lengths:
        parts += [np.arange(start, start + length), [EOT]]
        start += length
    return np.concatenate(parts).astype(np.int64)


def load(dataset, *, count: int, step: int = 4, split: str = "train", **options):
    """So many steps of so many sequences; all rows in one micro-batch unless told."""
    options = {"seq_len": 8, "seed": 1, "rows": [(0, step)], **options}
    return list(islice(Loader(dataset, split, sequences_per_step=step, **options), count))


def epoch_steps(dataset, *, seq_len: int, epoch: int = 0, seed: int = 1):
    """The sequences of one epoch, one step each."""
    loader = Loader(
        dataset, seq_len=seq_len, seed=seed, sequences_per_step=1, rows=[(0, 1)], cursor=Cursor(epoch=epoch)
    )
    steps = []
    for step in loader:
        steps.append(step)
        if step.cursor.epoch > epoch:
            return steps


def same(one, other) -> bool:
    return all(
        a.counts == b.counts
        and a.total == b.total
        and a.cursor == b.cursor
        and all(np.array_equal(x, y) for p, q in zip(a.micro_batches, b.micro_batches) for x, y in zip(p, q))
        for a, b in zip(one, other, strict=True)
    )


SHARDS = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(
    lengths=SHARDS,
    tails=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    seq_len=st.integers(1, 40),
    seed=st.integers(0, 1 << 40),
    epoch=st.integers(0, 3),
)
def test_every_token_is_a_target_once_per_epoch_after_the_token_before_it(
    tmp_path_factory, lengths, tails, seq_len, seed, epoch
):
    shards, start = [], 1
    for index, (shard, tail) in enumerate(zip(lengths, tails)):
        rest = 10_000 + 10 * index + np.arange(tail)  # a document that goes on in the next shard
        shards.append(np.concatenate([documents(*shard, start=start), rest]))
        start += sum(shard)
    dataset = make_dataset(tmp_path_factory.mktemp("data"), train=shards)
    steps = epoch_steps(dataset, seq_len=seq_len, epoch=epoch, seed=seed)
    stream = np.concatenate(shards)
    before = {int(b): int(a) for tokens in shards for a, b in zip([EOT, *tokens], tokens) if b != EOT}
    seen = []
    for step in steps:
        ((x, y),) = step.micro_batches
        assert x.shape == y.shape == (1, seq_len) and x.dtype == y.dtype == np.int64
        x, y = x[0], y[0]
        counted = y != IGNORED
        count = int(counted.sum())
        assert count == step.counts[0] == step.total > 0
        assert counted[:count].all() and (x[count:] == EOT).all(), "what is filled up is at the end"
        assert (x[1:count] == y[: count - 1]).all()
        # In the order of documents that this epoch has, the token before the first of a document is a mark.
        assert all(before[b] == a for a, b in zip(x[:count].tolist(), y[:count].tolist()) if b != EOT)
        seen += y[:count].tolist()
    assert Counter(seen) == Counter(stream.tolist())
    assert steps[-1].cursor == Cursor(epoch=epoch + 1)


def test_the_marks_after_documents_are_targets_of_their_own_documents(tmp_path):
    shard = documents(3, 0, 5, 0, 1)
    dataset = make_dataset(tmp_path, train=[shard])
    order = permutation(5, 1, 0, 0, 1)
    pieces = np.split(shard, find(shard, EOT)[:-1] + 1)
    expected = np.concatenate([pieces[i] for i in order])
    stream = Stream(shard, find(shard, EOT), order, EOT)
    assert stream.between(0, len(shard)).tolist() == expected.tolist()
    targets = np.concatenate([step.micro_batches[0][1][0] for step in epoch_steps(dataset, seq_len=4)])
    assert sorted(targets[targets != IGNORED]) == sorted(shard)


def test_a_mark_that_is_also_text_leaves_a_shard_in_its_order(tmp_path):
    shard = documents(*[5] * 40)
    (step,) = load(make_dataset(tmp_path, train=[shard], eot_in_text=True), count=1, seq_len=500, step=2)
    y = [row[row != IGNORED] for row in step.micro_batches[0][1]]
    both = {tuple(np.concatenate(y)), tuple(np.concatenate(y[::-1]))}
    assert tuple(shard) in both


@pytest.fixture
def text(tmp_path):
    """Three shards of 700 documents each, about 15,000 tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, size=(3, 700))
    starts = np.cumsum([1, *lengths.sum(axis=1)])
    shards = [documents(*row, start=start) for row, start in zip(lengths, starts)]
    return make_dataset(tmp_path, train=shards, val=[documents(*[9] * 20)])


def test_equal_seeds_give_equal_batches_and_others_others(text):
    assert same(load(text, count=30), load(text, count=30))
    assert not same(load(text, count=3), load(text, count=3, seed=2))


def test_no_global_random_number_is_drawn_and_none_matters(text):
    np.random.seed(5)
    first, after = load(text, count=5), np.random.random()
    np.random.seed(5)
    assert after == np.random.random()
    assert same(first, load(text, count=5))


def test_it_is_shuffled_for_real_and_anew_in_every_epoch(text):
    def order(epoch: int) -> list[int]:
        targets = np.concatenate([step.micro_batches[0][1][0] for step in epoch_steps(text, seq_len=32, epoch=epoch)])
        return targets[targets > 0].tolist()

    first, second = order(0), order(1)
    stream = [int(t) for shard in text.shards("train") for t in shard.open() if t]
    assert sorted(first) == sorted(second) == stream
    assert len({tuple(first), tuple(second), tuple(stream)}) == 3
    # Windows: where neighbours in the batches come from lies far apart.
    jumps = np.abs(np.diff(np.array(first)))
    assert np.median(jumps[jumps > 1]) > 500
    # Shards: their order is another in some epochs.
    bounds = np.cumsum([0] + [int((shard.open() != EOT).sum()) for shard in text.shards("train")])
    starts = {int(np.searchsorted(bounds, order(epoch)[0])) for epoch in range(8)}
    assert len(starts) > 1


def test_windows_begin_elsewhere_in_every_epoch(text):
    """No two epochs cut the text at the same places, even where there is one document alone."""
    one = make_dataset(text.folder, train=[np.arange(1, 5000)])
    epochs = [epoch_steps(one, seq_len=100, epoch=epoch) for epoch in range(4)]
    begins = [{int(step.micro_batches[0][1][0, 0]) for step in steps} for steps in epochs]
    assert all(len(a & b) <= 1 for i, a in enumerate(begins) for b in begins[:i])


@pytest.mark.parametrize("step", [1, 7, 400])
def test_resumed_anywhere_it_goes_on_identically(text, step):
    """A step of 400 sequences takes a third of an epoch, so the ends of epochs are crossed in the midst of steps."""
    whole = load(text, count=14, step=step, seq_len=16)
    for i in range(len(whole) - 1):
        cursor = Cursor.from_dict(json.loads(json.dumps(whole[i].cursor.to_dict())))
        assert same(load(text, count=13 - i, step=step, seq_len=16, cursor=cursor), whole[i + 1 :])


def test_resumed_around_the_end_of_an_epoch(text):
    before = load(text, count=2, step=300, seq_len=64)
    assert before[0].cursor.epoch == 1 or before[1].cursor.epoch == 1
    per_epoch = len(epoch_steps(text, seq_len=64))
    for sequence in range(per_epoch - 3, per_epoch):
        steps = load(text, count=3, step=2, seq_len=64, cursor=Cursor(sequence=sequence))
        assert same(load(text, count=2, step=2, seq_len=64, cursor=steps[0].cursor), steps[1:])


SHARES = {
    "two processes": [[(0, 6)], [(6, 12)]],
    "accumulated": [[(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12)]],
    "unequal processes": [[(0, 5), (5, 9)], [(9, 12)]],
    "taking turns": [[(0, 3), (6, 9)], [(3, 6), (9, 12)]],
    "four": [[(0, 3)], [(3, 6)], [(6, 9)], [(9, 12)]],
}


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
def test_any_number_of_processes_see_the_same_batches(text, share):
    alone = load(text, count=30, step=12, seq_len=16)
    together = [load(text, count=30, step=12, seq_len=16, rows=rows) for rows in share]
    for number, whole in enumerate(alone):
        for part in (0, 1):
            joined = np.empty_like(whole.micro_batches[0][part])
            for rows, steps in zip(share, together):
                for (start, stop), batch in zip(rows, steps[number].micro_batches, strict=True):
                    joined[start:stop] = batch[part]
            assert np.array_equal(joined, whole.micro_batches[0][part])
        steps = [process[number] for process in together]
        assert {s.total for s in steps} == {whole.total} == {sum(sum(s.counts) for s in steps)}
        assert {s.cursor for s in steps} == {whole.cursor} and {s.epoch for s in steps} == {whole.epoch}
        for s in steps:
            assert s.counts == [int((y != IGNORED).sum()) for _, y in s.micro_batches]


def test_a_shard_is_opened_once_per_epoch(text):
    opened = []
    for shard in text.shards("train"):
        object.__setattr__(shard, "open", lambda shard=shard, real=shard.open: opened.append(shard.path.name) or real())
    steps = load(text, count=200, step=12, seq_len=16)
    epochs = sum(step.cursor.epoch == 0 for step in steps), sum(step.cursor.epoch < 2 for step in steps)
    opened.clear()
    load(text, count=epochs[0], step=12, seq_len=16)
    assert sorted(opened) == [f"train_00000{i}.bin" for i in range(3)]
    assert 1 < epochs[0] < epochs[1] < 200


def test_the_epoch_is_told_as_a_number(text):
    steps = load(text, count=400, step=3, seq_len=64)
    epochs = [s.epoch for s in steps]
    assert epochs == sorted(epochs) and 0 < epochs[0] < 0.05
    assert all(int(s.epoch) == s.cursor.epoch for s in steps) and epochs[-1] > 2


@pytest.mark.parametrize("length", [1, 2, 7])
def test_less_text_than_one_sequence_will_do(tmp_path, length):
    dataset = make_dataset(tmp_path, train=[np.arange(1, length + 1)])
    (step,) = load(dataset, count=1, seq_len=1000, step=5)
    assert step.total >= length and step.micro_batches[0][0].shape == (5, 1000)
    assert step.cursor.epoch >= 2, "a step of more sequences than an epoch has goes on with the next"


def test_a_batch_of_many_epochs_is_resumed_too(tmp_path):
    dataset = make_dataset(tmp_path, train=[documents(3, 4), documents(5)])
    whole = load(dataset, count=6, seq_len=4, step=50)
    assert same(load(dataset, count=3, seq_len=4, step=50, cursor=whole[2].cursor), whole[3:])


def test_seeds_of_any_size(text):
    assert not same(load(text, count=1, seed=1 << 80), load(text, count=1, seed=(1 << 80) + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "seq_len is 0; it must be at least 1"),
        ({"step": 0, "rows": [(0, 1)]}, "sequences_per_step is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
        ({"rows": [(0, 5)]}, r"rows has \(0, 5\); a range must lie in the step's 4 sequences"),
        ({"rows": [(2, 2)]}, r"rows has \(2, 2\)"),
        ({"rows": [(-1, 2)]}, r"rows has \(-1, 2\)"),
        ({"split": "test"}, "split is 'test'; it must be 'train' or 'val'"),
        ({"cursor": Cursor(sequence=10_000)}, "cursor is at sequence 10000 of epoch 0, which has .* another seq_len"),
    ],
)
def test_mistakes_are_one_clear_line(text, options, message):
    with pytest.raises(ValueError, match=message):
        load(text, count=1, **options)


def test_an_empty_split_is_refused_by_name(tmp_path):
    dataset = make_dataset(tmp_path, train=[documents(3)])
    for read in (lambda: load(dataset, count=1, split="val"), lambda: list(windows(dataset, 100))):
        with pytest.raises(ValueError, match="has no tokens of split 'val'"):
            read()


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"epoch": 0}, {"epoch": 0, "sequence": -1}, {"epoch": 1.0, "sequence": 0},
     {"epoch": True, "sequence": 0}, {"epoch": "0", "sequence": 0}, {"epoch": 0, "sequence": 0, "more": 1}],
)  # fmt: skip
def test_a_cursor_is_two_whole_numbers(data):
    with pytest.raises(ValueError, match="cursor"):
        Cursor.from_dict(data)


def test_a_damaged_shard_is_named_when_it_is_reached(text):
    path = text.shards("train")[1].path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match="train_000001.bin"):
        load(text, count=2000)


# -- validation ------------------------------------------------------------------------------------------------------


def windows(dataset, max_tokens: int, seq_len: int = 8, batch: int = 4):
    return validation_windows(dataset, seq_len=seq_len, max_tokens=max_tokens, batch=batch)


@settings(deadline=None, max_examples=60)
@given(lengths=SHARDS, seq_len=st.integers(1, 40), batch=st.integers(1, 5), max_tokens=st.integers(1, 300))
def test_validation_reads_every_token_once_in_order_up_to_its_limit(
    tmp_path_factory, lengths, seq_len, batch, max_tokens
):
    shards = [documents(*shard) for shard in lengths]
    dataset = make_dataset(tmp_path_factory.mktemp("data"), val=shards)
    seen, before = [], []
    for x, y, count in windows(dataset, max_tokens, seq_len, batch):
        assert x.shape == y.shape == (batch, seq_len) and x.dtype == y.dtype == np.int64
        assert count == (y != IGNORED).sum() > 0
        assert (x[y == IGNORED] == EOT).all()
        seen += y[y != IGNORED].tolist()
        before += x[y != IGNORED].tolist()
    assert seen == np.concatenate(shards)[:max_tokens].tolist()
    assert before == np.concatenate([[EOT, *shard[:-1]] for shard in shards])[:max_tokens].tolist()


def test_any_split_can_be_read_in_its_order(tmp_path):
    shards = [documents(20), documents(9, 4)]
    dataset = make_dataset(tmp_path, train=shards, val=[documents(30)])
    seen = [y[y != IGNORED] for _, y, _ in validation_windows(dataset, "train", seq_len=8, max_tokens=99, batch=2)]
    assert np.concatenate(seen).tolist() == np.concatenate(shards).tolist()
    with pytest.raises(ValueError, match="split is 'test'; it must be 'train' or 'val'"):
        next(validation_windows(dataset, "test", seq_len=8, max_tokens=99, batch=2))


def test_validation_opens_no_shard_beyond_its_limit(text, tmp_path):
    dataset = make_dataset(tmp_path, val=[documents(20), documents(20)])
    dataset.shards("val")[1].path.unlink()
    assert sum(count for _, _, count in windows(dataset, 21)) == 21
    with pytest.raises(ShardError, match="val_000001.bin cannot be read"):
        list(windows(dataset, 22))


@pytest.mark.parametrize("name", ["seq_len", "max_tokens", "batch"])
def test_validation_sizes_must_be_positive(text, name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        next(windows(text, **{"max_tokens": 5, name: 0}))


def test_an_order_depends_on_its_key_alone():
    assert permutation(6, 1, 2, 3, 4).tolist() == permutation(6, 1, 2, 3, 4).tolist()
    orders = {tuple(permutation(20, *key)) for key in itertools.product((0, 1), (0, 1), (0, 1), range(4))}
    assert len(orders) == 32
    assert all(sorted(order) == list(range(20)) for order in orders)
    # Frozen: a run begun with one version of numpy goes on with another.
    assert permutation(10, 1, 2, 3, 1).tolist() == [5, 0, 3, 2, 8, 9, 6, 7, 4, 1]



@pytest.mark.soak
@pytest.mark.parametrize("mean", [200, 5000])
def test_a_shard_of_100_million_tokens_opens_at_once_and_a_sequence_costs_microseconds(tmp_path, mean):
    """1 % of a step on a device that trains 500,000 tokens a second is 20 microseconds per sequence of 1024."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50257, size=100_000_000, dtype=np.uint16)
    tokens[rng.choice(len(tokens), len(tokens) // mean, replace=False)] = EOT
    dataset = make_dataset(tmp_path, train=[tokens])
    del tokens

    def loader() -> Loader:
        return Loader(dataset, seq_len=1024, seed=0, sequences_per_step=64, rows=[(0, 64)])

    tracemalloc.start()
    next(loader())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    began = time.perf_counter()
    steps = loader()
    next(steps)
    opened = time.perf_counter()
    for _ in range(100):
        next(steps)
    per_sequence = (time.perf_counter() - opened) / 6400
    print(f"\nopened in {opened - began:.2f} s and {peak / 1e6:.0f} MB; {per_sequence * 1e6:.1f} us per sequence")
    assert opened - began < 1 and peak < 200e6 and per_sequence < 20e-6
