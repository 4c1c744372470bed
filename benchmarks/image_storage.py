"""Speed of several layouts for many small photos, and of several ways to read them in training.

    python -m benchmarks.image_storage
    python -m benchmarks.image_storage --layouts files256,pack --photos 1000000

Storage: JPEG files in 256 or 4096 folders, each written to a temporary name and renamed, as the stage `images` does;
uncompressed tar files, Parquet files and plain packs (concatenated bytes, offsets in a NumPy array) of 10,000 photos.
For each layout: write all, list all, read and decode random batches of 64, delete one photo in a hundred, remove all.

Batches: 64 random photos as input of a vision tower, decoded from their JPEG files, or read from a memory-mapped array
of uint8 (as training does) or float16.

Reads come from the page cache, as in later epochs on a machine with enough memory.
"""

import argparse
import io
import shutil
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.photo_origin import photo
from pixrec_core import files
from pixrec_core.data.photos import encode, normalise
from pixrec_core.paths import DatasetPaths

BATCH = 64
SHARD = 10_000
PHOTO_EDGE = 128  # pixels, as stored
KINDS = 100  # different photos


class Layout(ABC):
    """A folder of photos with numbers from 0."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    @abstractmethod
    def write(self, bodies: Sequence[bytes]) -> None:
        """Write all photos; photo n is `bodies[n % len(bodies)]`."""

    @abstractmethod
    def scan(self) -> int:
        """Return the number of photos, after looking up their sizes or offsets."""

    @abstractmethod
    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield some photos."""

    @abstractmethod
    def delete(self, numbers: Sequence[int]) -> None:
        """Delete some photos and free their space."""

    def shards(self) -> Iterator[tuple[int, range]]:
        """Yield the number of each file and the photos in it."""
        for start in range(0, self.count, SHARD):
            yield start // SHARD, range(start, min(start + SHARD, self.count))


class Files(Layout):
    """One file per photo, as in `DatasetPaths.image`; the first `letters` of the key are its folder."""

    letters = 2

    def path(self, number: int) -> Path:
        """Return the file of a photo."""
        key = DatasetPaths(self.folder).image(str(number)).stem
        return self.folder / key[: self.letters] / f"{key}.jpg"

    def write(self, bodies: Sequence[bytes]) -> None:
        for number in range(self.count):
            with files.replacing(self.path(number)) as temporary:
                temporary.write_bytes(bodies[number % len(bodies)])

    def scan(self) -> int:
        return sum(path.stat().st_size > 0 for path in self.folder.rglob("*.jpg"))

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        return (self.path(number).read_bytes() for number in numbers)

    def delete(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.path(number).unlink()


class Files4096(Files):
    """The same in 4096 folders."""

    letters = 3


class Tar(Layout):
    """Uncompressed tar files with an index of offsets."""

    def write(self, bodies: Sequence[bytes]) -> None:
        for shard, numbers in self.shards():
            with tarfile.open(self.folder / f"{shard}.tar", "w") as file:
                for number in numbers:
                    entry = tarfile.TarInfo(f"{number}.jpg")
                    entry.size = len(bodies[number % len(bodies)])
                    file.addfile(entry, io.BytesIO(bodies[number % len(bodies)]))

    def scan(self) -> int:
        self._offsets = {}
        for path in self.folder.glob("*.tar"):
            with tarfile.open(path) as file:
                for entry in file:
                    self._offsets[int(entry.name[:-4])] = (path, entry.offset_data, entry.size)
        return len(self._offsets)

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        for number in numbers:
            path, start, size = self._offsets[number]
            with path.open("rb") as file:
                file.seek(start)
                yield file.read(size)

    def delete(self, numbers: Sequence[int]) -> None:
        deleted = {f"{number}.jpg" for number in numbers}
        for path in self.folder.glob("*.tar"):
            rest = path.with_suffix(".rest")
            with tarfile.open(path) as old, tarfile.open(rest, "w") as new:
                for entry in old:
                    if entry.name not in deleted:
                        new.addfile(entry, old.extractfile(entry))
            rest.replace(path)


class Parquet(Layout):
    """Uncompressed Parquet files with a binary column, a hundred photos per row group."""

    group = 100

    def _write(self, path: Path, table: pa.Table) -> None:
        pq.write_table(table, path, row_group_size=self.group, compression="none", use_dictionary=False)

    def write(self, bodies: Sequence[bytes]) -> None:
        for shard, numbers in self.shards():
            columns = {"number": list(numbers), "photo": [bodies[number % len(bodies)] for number in numbers]}
            self._write(self.folder / f"{shard}.parquet", pa.table(columns))

    def scan(self) -> int:
        return pl.scan_parquet(self.folder / "*.parquet").select("number").collect().height

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        for number in numbers:
            shard, row = divmod(number, SHARD)
            with pq.ParquetFile(self.folder / f"{shard}.parquet") as file:
                group = file.read_row_group(row // self.group, columns=["photo"])
            yield group["photo"][row % self.group].as_py()

    def delete(self, numbers: Sequence[int]) -> None:
        deleted = pa.array(numbers)
        for path in self.folder.glob("*.parquet"):
            table = pq.read_table(path)
            keep = pa.compute.invert(pa.compute.is_in(table["number"], deleted))
            self._write(path.with_suffix(".rest"), table.filter(keep))
            path.with_suffix(".rest").replace(path)


class Pack(Layout):
    """Concatenated bytes, with their offsets in a NumPy array."""

    def write(self, bodies: Sequence[bytes]) -> None:
        for shard, numbers in self.shards():
            chosen = [bodies[number % len(bodies)] for number in numbers]
            with (self.folder / f"{shard}.bin").open("wb") as file:
                file.writelines(chosen)
            np.save(self.folder / f"{shard}.npy", np.cumsum([0, *map(len, chosen)]))

    def scan(self) -> int:
        self._offsets = {int(path.stem): np.load(path) for path in self.folder.glob("*.npy")}
        return sum(len(offsets) - 1 for offsets in self._offsets.values())

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        for number in numbers:
            shard, row = divmod(number, SHARD)
            start, end = self._offsets[shard][row : row + 2]
            with (self.folder / f"{shard}.bin").open("rb") as file:
                file.seek(start)
                yield file.read(end - start)

    def delete(self, numbers: Sequence[int]) -> None:
        deleted = set(numbers)
        for shard, photos in self.shards():
            body = (self.folder / f"{shard}.bin").read_bytes()
            offsets = self._offsets[shard]
            remaining = [body[offsets[n] : offsets[n + 1]] for n, number in enumerate(photos) if number not in deleted]
            (self.folder / f"{shard}.bin").write_bytes(b"".join(remaining))
            np.save(self.folder / f"{shard}.npy", np.cumsum([0, *map(len, remaining)]))


LAYOUTS: dict[str, type[Layout]] = {
    "files256": Files,
    "files4096": Files4096,
    "tar": Tar,
    "parquet": Parquet,
    "pack": Pack,
}


def stored_photos() -> list[bytes]:
    """Return different photos as the stage `images` stores them."""
    return [encode(normalise(photo(300, seed), PHOTO_EDGE, 10**6)) for seed in range(KINDS)]


def measure(layout: Layout, bodies: Sequence[bytes], batches: int) -> dict[str, float]:
    """Return seconds per operation, and milliseconds per batch for reading."""
    draw = np.random.default_rng(0)
    measured: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str, per: float = 1.0) -> None:
        nonlocal start
        measured[name] = (time.perf_counter() - start) / per
        start = time.perf_counter()

    layout.write(bodies)
    lap("write s")
    assert layout.scan() == layout.count
    lap("find s")
    for _ in range(batches):
        for body in layout.read(draw.integers(0, layout.count, BATCH).tolist()):
            assert body
    lap("read ms per batch", batches / 1000)
    for _ in range(batches):
        for body in layout.read(draw.integers(0, layout.count, BATCH).tolist()):
            Image.open(io.BytesIO(body)).load()
    lap("read and decode ms per batch", batches / 1000)
    layout.delete(list(range(0, layout.count, 100)))
    lap("delete 1 % s")
    shutil.rmtree(layout.folder)
    lap("remove s")
    return measured


def compare_storage(names: Sequence[str], count: int, batches: int) -> None:
    """Print one line per layout."""
    bodies = stored_photos()
    print(f"{count:,} photos of {sum(map(len, bodies)) / KINDS:,.0f} bytes")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            photos = Path(folder) / "photos"
            photos.mkdir()
            measured = measure(LAYOUTS[name](photos, count), bodies, batches)
        print(f"{name:10}", "  ".join(f"{what} {value:.1f}" for what, value in measured.items()), flush=True)


def compare_batches(edge: int, count: int, batches: int) -> None:
    """Print milliseconds per batch and bytes per photo, for JPEG files and both arrays."""
    from transformers import SmolVLMImageProcessorPil, SmolVLMVisionConfig

    from pixrec_core.models.backbones.smolvlm import FamilyProcessor
    from pixrec_core.models.photo_store import PhotoStore, photo_files, pixel_store
    from pixrec_core.schemas import ITEM

    longest = {"longest_edge": edge}
    config = type("Config", (), {"model_type": "smolvlm", "vision_config": SmolVLMVisionConfig(image_size=edge)})
    processor = FamilyProcessor(None, SmolVLMImageProcessorPil(size=longest, max_image_size=longest), config)
    bodies, items = stored_photos(), [str(number) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        paths = DatasetPaths(Path(folder))
        for number, item in enumerate(items):
            with files.replacing(paths.image(item)) as temporary:
                temporary.write_bytes(bodies[number % KINDS])
        pl.DataFrame({ITEM: items, "sha256": items}).write_parquet(paths.images_manifest)
        decoded = photo_files(paths, items, processor)
        colours = pixel_store(decoded)
        halves = np.lib.format.open_memmap(paths.root / "halves.npy", "w+", np.float16, colours.values.shape)
        for number in range(count):
            halves[number] = decoded.pixels(number).numpy()
        sources = {
            "JPEG files": (decoded, sum(map(len, bodies)) / KINDS),
            "colours": (colours, colours.values[0].nbytes),
            "float16": (PhotoStore(halves, processor), halves[0].nbytes),
        }
        for name, (source, size) in sources.items():
            draw, start = np.random.default_rng(0), time.perf_counter()
            for _ in range(batches):
                source.load(draw.integers(0, count, BATCH))
            milliseconds = 1000 * (time.perf_counter() - start) / batches
            print(
                f"{edge:3} pixels, {name:10} {milliseconds:7.1f} ms per batch, {size:9,.0f} bytes per photo", flush=True
            )


def main() -> None:
    """Compare layouts, then ways to read batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200_000)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="layouts, separated by commas; '' for none")
    args = parser.parse_args()
    compare_storage([name for name in args.layouts.split(",") if name], args.photos, args.batches)
    for edge, count in ((64, 2000), (512, 200)):
        compare_batches(edge, count, max(1, args.batches // 5))


if __name__ == "__main__":
    main()
