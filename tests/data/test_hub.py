import hashlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.corpora import corpus
from data.download import DownloadError
from data.hub import HubCorpus

STORIES = {"data/train-0.parquet": 700, "data/train-1.parquet": 300, "data/val.parquet": 50}


def stories(path: str) -> list[str | None]:
    """Some are empty, one is missing: neither is a document."""
    texts = [f"{path}: story {i}, and they lived happily.\n" * (1 + i % 3) for i in range(STORIES[path])]
    return ["", None, *texts[2:]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder that stands for the hub."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    root = tmp_path_factory.mktemp("hub")
    (root / "data").mkdir()
    for path in STORIES:
        rows = stories(path)
        table = pa.table({"id": list(range(len(rows))), "text": pa.array(rows, pa.string())})
        parquet.write_table(table, root / path, row_group_size=100)
    return root


@pytest.fixture
def make(hub):
    sizes = {path: (hub / path).stat().st_size for path in STORIES}

    def corpus_of(**changes) -> HubCorpus:
        fields = {
            "train": {path: sizes[path] for path in ("data/train-0.parquet", "data/train-1.parquet")},
            "val": {"data/val.parquet": sizes["data/val.parquet"]},
        }
        return HubCorpus(name="stories", repo="someone/stories", revision="a" * 40, **{**fields, **changes})

    return corpus_of


@pytest.fixture
def raw(hub, tmp_path):
    """All files, placed by hand."""
    folder = tmp_path / "raw"
    (folder / "stories").mkdir(parents=True)
    for path in STORIES:
        (folder / "stories" / path.split("/")[1]).write_bytes((hub / path).read_bytes())
    return folder


@pytest.fixture
def client(hub, monkeypatch):
    """A huggingface_hub whose network is a folder; `asked` lists what was downloaded."""
    asked = []

    def checked(repo_id, repo_type, revision):
        assert (repo_id, repo_type, revision) == ("someone/stories", "dataset", "a" * 40)

    def get_paths_info(*, paths, **where):
        checked(**where)
        digests = {path: hashlib.sha256((hub / path).read_bytes()).hexdigest() for path in paths}
        return [SimpleNamespace(path=path, lfs=SimpleNamespace(sha256=digest)) for path, digest in digests.items()]

    def hf_hub_download(*, filename, local_dir, **where):
        checked(**where)
        asked.append(filename)
        arrived = local_dir / filename
        arrived.parent.mkdir(parents=True, exist_ok=True)
        arrived.write_bytes(fake.content(filename))
        return str(arrived)

    fake = SimpleNamespace(
        HfApi=lambda: SimpleNamespace(get_paths_info=get_paths_info),
        hf_hub_download=hf_hub_download,
        content=lambda filename: (hub / filename).read_bytes(),
        asked=asked,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def documents(paths: list[str]) -> list[str]:
    return [text for path in paths for text in stories(path) if text]


def test_its_own_validation_file(make, raw):
    source = make()
    source.fetch(raw)
    assert list(source.documents(raw, "train")) == documents(["data/train-0.parquet", "data/train-1.parquet"])
    assert list(source.documents(raw, "val")) == documents(["data/val.parquet"])
    assert all(piece.ends for piece in source.pieces(raw, "val"))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.55])
def test_the_beginning_of_the_first_file_where_there_is_none(make, raw, share):
    source = make(val={}, val_share=share)
    kept = math.ceil(STORIES["data/train-0.parquet"] * share)
    val, train = list(source.documents(raw, "val")), list(source.documents(raw, "train"))
    assert val == [text for text in stories("data/train-0.parquet")[:kept] if text]
    assert val + train == documents(["data/train-0.parquet", "data/train-1.parquet"])


def test_what_is_missing_is_downloaded_checked_and_moved(make, client, tmp_path):
    source, seen = make(), []
    source.fetch(tmp_path, lambda *progress: seen.append(progress))
    total = sum(source.sizes.values())
    assert client.asked == list(source.sizes)
    assert seen[0] == ("stories", 0, total) and seen[-1] == ("stories", total, total)
    names = sorted(path.name for path in (tmp_path / "stories").iterdir())
    assert names == ["train-0.parquet", "train-1.parquet", "val.parquet"]
    assert list(source.documents(tmp_path, "val")) == documents(["data/val.parquet"])
    source.fetch(tmp_path)
    assert len(client.asked) == 3, "what is there is not downloaded again"
    (tmp_path / "stories" / "train-1.parquet").unlink()
    source.fetch(tmp_path)
    assert client.asked[3:] == ["data/train-1.parquet"]


def test_other_bytes_than_the_hubs_are_never_visible(make, client, hub, tmp_path):
    good = client.content
    client.content = lambda filename: good(filename)[:-1] + b"!" if "train-1" in filename else good(filename)
    with pytest.raises(DownloadError, match=r"train-1.parquet: what came does not have the hub's SHA-256"):
        make().fetch(tmp_path)
    assert not (tmp_path / "stories" / "train-1.parquet").exists()
    assert not list(tmp_path.rglob("train-1*")), "bad bytes are thrown away"
    client.content = good
    make().fetch(tmp_path)
    assert client.asked.count("data/train-0.parquet") == 1


def test_without_a_network_one_line_says_what_and_where(make, client, tmp_path):
    def offline(**kwargs):
        raise RuntimeError("[Errno -2] Name or service not known\nmore lines")

    client.HfApi = lambda: SimpleNamespace(get_paths_info=offline)
    with pytest.raises(DownloadError) as caught:
        make().fetch(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"https://huggingface.co/datasets/someone/stories/resolve/{'a' * 40}/data/train-0.parquet" in message
    assert f"put it at {tmp_path / 'stories' / 'train-0.parquet'} (and 2 others of stories beside it)" in message


@pytest.mark.parametrize("package", ["huggingface_hub", "pyarrow"])
def test_a_missing_package_is_named(make, raw, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        make().fetch(tmp_path if package == "huggingface_hub" else raw)


def test_damaged_files_are_refused_by_name_and_kept(make, raw, hub):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    place = raw / "stories" / "val.parquet"
    good = place.read_bytes()
    for damage, reason in (
        (good[:-9], "bytes instead of"),
        (bytes(len(good)), "magic bytes"),
        (good[:-8] + b"\xff\xff\xff\x7fPAR1", "footer"),
    ):
        place.write_bytes(damage)
        with pytest.raises(ValueError, match=f"val.parquet is not that of stories: .*{reason}.*put the right file"):
            make().fetch(raw)
        assert place.read_bytes() == damage
    parquet.write_table(pa.table({"story": ["one"]}), place)
    with pytest.raises(ValueError, match="val.parquet is not that of stories: it has no column 'text'"):
        make(val={"data/val.parquet": place.stat().st_size}).fetch(raw)


def test_damage_found_on_the_way_is_named(make, raw):
    place = raw / "stories" / "train-0.parquet"
    content = bytearray(place.read_bytes())
    content[4:3000] = bytes(2996)
    place.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-0.parquet is damaged after row 0"):
        list(make().pieces(raw, "train"))


def test_the_version_follows_revision_files_and_split(make):
    versions = {make().version(None), make(val_share=0.5).version(None), make(val={}).version(None)}
    assert len(versions) == 3 and make().version(None) in versions


@pytest.mark.parametrize(
    ("name", "files", "total"), [("tinystories", 5, 1_000_775_442), ("fineweb-edu-10b", 14, 28_518_193_415)]
)
def test_the_public_ones_have_the_sizes_that_their_pages_state(name, files, total):
    source = corpus(name)
    assert len(source.sizes) == files and sum(source.sizes.values()) == total
    assert len(source.revision) == 40 and len({source.place(Path("raw"), path) for path in source.sizes}) == files


