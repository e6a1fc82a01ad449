"""What `vlm-lora check` costs: rows a second and peak memory at 1,000, 10,000 and 100,000 rows.

    python benchmarks/data_check.py [--rows 1000 10000 100000] [--workers N] [--size 64] [--write]

Each number of rows is checked twice in processes of their own, first read row by row and then taken from the kept
check. Rows have a question and an answer of their own over `IMAGES` random PNG files; in each data set ten rows are
broken in ten ways, and the script stops where the check does not find exactly those. Memory is the resident set of the
process that collects the findings and of its largest worker, as the kernel counts it. `--write` puts the table into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PATHS = [str(ROOT), str(ROOT / "backends"), str(ROOT / "tests")]
sys.path[:0] = PATHS

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- data check: begin -->", "<!-- data check: end -->"
IMAGES = 1000
FAULTS: tuple[dict[str, Any], ...] = (
    {"image": "none.png"},
    {"image": "broken.png"},
    {"image": "empty.png"},
    {"image": "../outside.png"},
    {"image": "http://example.com/a.png"},
    {"image": "large.png"},
    {"question": "why " * 3000},
    {"answer": None},
    {"answer": [True]},
    {"answer": []},
)


def write_data(folder: Path, rows: int, size: int) -> list[int]:
    """Write train.jsonl and its images; return the numbers of the broken rows."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    (folder / "empty.png").write_bytes(b"")
    Image.new("L", (1200, 1200)).save(folder / "large.png")
    Image.new("L", (8, 8)).save(folder.parent / "outside.png")
    broken = [rows * (2 * number + 1) // 20 for number in range(len(FAULTS))]
    with (folder / "train.jsonl").open("w", encoding="utf-8") as stream:
        for row in range(rows):
            fault = FAULTS[broken.index(row)] if row in broken else {}
            content = {"image": f"{row % IMAGES}.png", "question": f"What is in row {row}?", "answer": ["a red bus"]}
            stream.write(json.dumps({**content, **fault}) + "\n")
    return broken


def measure(model: str, data: str, workers: int) -> None:
    """Check a folder in this process and print what it took as one line of JSON."""
    from vlm_lora import pipeline
    from vlm_lora.config.sources import parse

    words = ["--model_name_or_path", model, "--dataset_name", data, "--use_cpu", "--do_eval", "false"]
    run = parse([*words, "--validation_fraction", "0", "--max_image_pixels", "1000000"], environ=os.environ)
    start = time.perf_counter()
    report = pipeline.check(run, workers=workers, show_progress=False)
    figures = {
        "seconds": time.perf_counter() - start,
        "bad": [row.row for row in report.bad],
        "own_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def run_once(folder: Path, data: Path, workers: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(folder / "model"), str(data), str(workers)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "VLM_LORA_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(PATHS)},
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", nargs=3)
    own = parser.parse_args()
    if own.measure:
        measure(own.measure[0], own.measure[1], int(own.measure[2]))
        return
    lines = [
        "| Rows | Read: seconds | Rows a second | Memory, MiB | A worker's, MiB | Again: seconds | Bad rows found |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        from support.tiny import build_model_folder

        folder = Path(name)
        build_model_folder("gemma3", folder / "model")
        for rows in own.rows:
            data = folder / str(rows) / "data"
            broken = write_data(data, rows, own.size)
            first, again = (run_once(folder, data, own.workers) for _ in range(2))
            if not first["bad"] == again["bad"] == broken:
                raise SystemExit(f"{rows} rows: broken are {broken}, found were {first['bad']} and {again['bad']}")
            lines.append(
                f"| {rows:,} | {first['seconds']:.1f} | {rows / first['seconds']:.0f} | {first['own_mib']:.0f} | "
                f"{first['worker_mib']:.0f} | {again['seconds']:.1f} | {len(first['bad'])} of {len(broken)} |"
            )
            print(lines[-1], flush=True)
    note = (
        f"Measured by `python benchmarks/data_check.py --workers {own.workers} --size {own.size}` with the "
        f"tests' tiny Gemma 3 processor and {own.size}x{own.size} PNG files, on {os.cpu_count()} cores "
        f"({platform.machine()}, Python {platform.python_version()})."
    )
    table = "\n".join([note, "", *lines])
    print(table)
    if own.write:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
