"""Corpora kept as Parquet files on the Hugging Face hub, each at one revision that never changes.

Files are downloaded by `huggingface_hub`, which resumes what was broken off, into a hidden folder; only those whose
SHA-256 is the hub's are moved to their place. One that is put there by hand must have the right size and be readable.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.documents import Corpus, Piece, check_split, cut
from data.download import Progress, unavailable
from data.files import file_sha256, publish

if TYPE_CHECKING:
    import pyarrow.parquet

ROWS_AT_ONCE = 256  # web pages have 5 kB on average; a batch is what is in memory


@dataclass(frozen=True, kw_only=True)
class HubCorpus(Corpus):
    """Documents in the column "text" of Parquet files.

    Args:
        repo: dataset on the hub.
        revision: commit there.
        train, val: path there -> bytes, in reading order.
        val_share: share of the first training file's documents, from its beginning, that are for validation instead;
            for a corpus without a validation file.
    """

    repo: str
    revision: str
    train: dict[str, int]
    val: dict[str, int]
    val_share: float = 0.0

    @property
    def sizes(self) -> dict[str, int]:
        return self.train | self.val

    def place(self, raw: Path, path: str) -> Path:
        return raw / self.name / path.split("/")[-1]

    def fetch(self, raw: Path, progress: Progress | None = None) -> None:
        missing = [path for path in self.sizes if not self.place(raw, path).exists()]
        if missing:
            self._download(missing, raw, progress)
        for path in self.sizes:
            self.open(raw, path)

    def version(self, raw: Path) -> str:
        return hashlib.sha256(json.dumps([self.revision, self.sizes, self.val_share]).encode()).hexdigest()[:8]

    def pieces(self, raw: Path, split: str) -> Iterator[Piece]:
        check_split(split)
        first = next(iter(self.train))
        kept = math.ceil(self.open(raw, first).metadata.num_rows * self.val_share)
        if split == "val":
            yield from self._rows(raw, first, stop=kept)
        for path in self.train if split == "train" else self.val:
            yield from self._rows(raw, path, start=kept if path == first else 0)

    def open(self, raw: Path, path: str) -> "pyarrow.parquet.ParquetFile":
        """One of the files, its size and its column checked.

        Raises:
            ValueError: it is missing or damaged, or pyarrow is not installed.
        """
        place, size = self.place(raw, path), self.sizes[path]
        try:
            import pyarrow.parquet
        except ImportError:
            raise ValueError(f"reading {self.name} needs pyarrow: pip install pyarrow") from None
        try:
            if (found := place.stat().st_size) != size:
                raise ValueError(f"it has {found:,} bytes instead of {size:,}")
            # Pages are read as they are needed: a row group of this corpus can be the whole file.
            file = pyarrow.parquet.ParquetFile(place, pre_buffer=False, buffer_size=1 << 20)
            if "text" not in file.schema_arrow.names:
                raise ValueError("it has no column 'text'")
        except (ValueError, OSError) as error:
            raise ValueError(f"{place} is not that of {self.name}: {error}; put the right file there") from error
        return file

    def _rows(self, raw: Path, path: str, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        row = 0
        file = self.open(raw, path)
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["text"], use_threads=False):
                for text in batch.column(0).to_pylist():
                    if start <= row and (stop is None or row < stop):
                        yield from cut([text or ""])
                    row += 1
                if stop is not None and row >= stop:
                    return
        except (ValueError, OSError) as error:  # pyarrow's errors are of these two kinds
            raise ValueError(f"{self.place(raw, path)} is damaged after row {row:,}: {error}; delete it") from error

    def _download(self, missing: list[str], raw: Path, progress: Progress | None) -> None:
        """Brings files to their places, one after another.

        Raises:
            ValueError: huggingface_hub is not installed.
            DownloadError: they cannot be had; names the first of them and how many there are.
        """
        others = f" (and {len(missing) - 1} others of {self.name} beside it)" if len(missing) > 1 else ""
        try:
            import huggingface_hub
        except ImportError:
            raise ValueError(f"downloading {self.name} needs huggingface_hub: pip install huggingface_hub") from None
        arriving = raw / self.name / ".arriving"
        where = {"repo_id": self.repo, "repo_type": "dataset", "revision": self.revision}
        done, total = sum(size for path, size in self.sizes.items() if path not in missing), sum(self.sizes.values())
        path = missing[0]
        try:
            infos = huggingface_hub.HfApi().get_paths_info(paths=missing, **where)
            hashes = {info.path: info.lfs.sha256 for info in infos}
            for path in missing:
                if progress:
                    progress(self.name, done, total)
                arrived = Path(huggingface_hub.hf_hub_download(filename=path, local_dir=arriving, **where))
                if file_sha256(arrived) != hashes[path]:
                    arrived.unlink()
                    raise ValueError("what came does not have the hub's SHA-256; try again")
                publish(arrived, self.place(raw, path))
                done += self.sizes[path]
        except Exception as error:  # the hub's client raises the errors of whichever HTTP library it uses
            url = f"https://huggingface.co/datasets/{self.repo}/resolve/{self.revision}/{path}"
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise unavailable(url, f"{self.place(raw, path)}{others}", reason) from error
        if progress:
            progress(self.name, done, total)
        shutil.rmtree(arriving, ignore_errors=True)


# The stories of GPT-3.5 and GPT-4 together, as the paper has them. The repository holds a second version, of GPT-4
# alone, as text files; the Parquet files are half as large and say where a story ends.
# Source: Eldan and Li, "TinyStories" (2023), https://arxiv.org/abs/2305.07759
TINYSTORIES = HubCorpus(
    name="tinystories",
    repo="roneneldan/TinyStories",
    revision="f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
    train={
        "data/train-00000-of-00004-2d5a1467fff1081b.parquet": 248_731_111,
        "data/train-00001-of-00004-5852b56a2bd28fd9.parquet": 248_171_980,
        "data/train-00002-of-00004-a26307300439e943.parquet": 245_894_874,
        "data/train-00003-of-00004-d243063613e5a057.parquet": 247_988_350,
    },
    val={"data/validation-00000-of-00001-869c898b519ad725.parquet": 9_989_127},
)

# Source: Penedo et al., "The FineWeb Datasets" (2024), https://arxiv.org/abs/2406.17557
FINEWEB_EDU_10B = HubCorpus(
    name="fineweb-edu-10b",
    repo="HuggingFaceFW/fineweb-edu",
    revision="87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    train={
        "sample/10BT/000_00000.parquet": 2_152_819_114,
        "sample/10BT/001_00000.parquet": 2_152_222_432,
        "sample/10BT/002_00000.parquet": 2_151_796_315,
        "sample/10BT/003_00000.parquet": 2_152_437_524,
        "sample/10BT/004_00000.parquet": 2_152_338_550,
        "sample/10BT/005_00000.parquet": 2_152_189_947,
        "sample/10BT/006_00000.parquet": 2_152_689_867,
        "sample/10BT/007_00000.parquet": 2_150_686_637,
        "sample/10BT/008_00000.parquet": 2_151_274_846,
        "sample/10BT/009_00000.parquet": 2_151_913_277,
        "sample/10BT/010_00000.parquet": 2_152_798_864,
        "sample/10BT/011_00000.parquet": 2_152_323_681,
        "sample/10BT/012_00000.parquet": 2_152_069_689,
        "sample/10BT/013_00000.parquet": 540_632_672,
    },
    val={},
    val_share=0.01,
)
