"""Rows from tar shards: the time of the first index, of opening with a kept one, and of rows in random order.

    python benchmarks/tar_rows.py [--samples 20000] [--image_bytes 100000] [--shards 8] [--folder DIR]

Images are random bytes behind a PNG signature: nothing is decoded here, the figures are those of reading alone.
The system's file cache is warm, because the tars were just written.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from vlm_lora.data.formats.rows import Rows  # noqa: E402
from vlm_lora.data.formats.tar.index_files import beside  # noqa: E402
from vlm_lora.data.formats.tar.writing import Sample, write_shard  # noqa: E402
from vlm_lora.data.sources.named import open_source  # noqa: E402

READS = 5000


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def make(number: int, size: int) -> Sample:
    """Return a sample of a short JSON and an image of the given bytes."""
    record = {"question": f"What is in image {number}?", "answer": str(number)}
    picture = b"\x89PNG\r\n\x1a\n" + random.Random(number).randbytes(size)
    return Sample(key=f"{number:08d}", payloads={"json": json.dumps(record).encode(), "png": picture})


def read_at_random(rows: Rows) -> int:
    """Read rows in random order and return their bytes."""
    order = random.Random(0).choices(range(len(rows)), k=READS)
    return sum(len(rows[number]["image"]) for number in order)


def main() -> None:
    """Write shards, then time what reading them takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--image_bytes", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        each = asked.samples // asked.shards
        for shard in range(asked.shards):
            samples = (make(number, asked.image_bytes) for number in range(shard * each, (shard + 1) * each))
            write_shard(Path(folder) / f"train-{shard:06d}.tar", samples)
        tars = sorted(Path(folder).glob("*.tar"))
        held = sum(tar.stat().st_size for tar in tars)
        kept, rows = timed(lambda: open_source(f"{folder}/*.tar").splits["train"])
        with_hashes, count = timed(lambda: read_at_random(rows))
        for tar in tars:
            beside(tar).unlink()
        first, rows = timed(lambda: open_source(f"{folder}/*.tar").splits["train"])
        without, _ = timed(lambda: read_at_random(rows))
        print(f"{len(rows)} samples, {held / 1e9:.2f} GB in {len(tars)} tars")
        print(f"first index: {first:.2f} s ({len(rows) / first:.0f} samples/s)")
        print(f"opening with kept indexes: {kept:.3f} s")
        for name, seconds in (("with CRC-32", with_hashes), ("without hashes", without)):
            print(f"rows in random order, {name}: {READS / seconds:.0f} rows/s, {count / seconds / 1e6:.0f} MB/s")
        print(f"peak resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
