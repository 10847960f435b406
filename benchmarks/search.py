"""python -m benchmarks.search: what it costs to search a folder by CLIP: time and memory of the index and of a query.

The pictures are drawn for the purpose: shapes of many colours and places, PNG, 64x64.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.measure import peak_memory
from clip.index import INDEX
from clip.rank import read_all
from clip.ranker import DEFAULT_CLIP, Ranker

SIDE = 64  # pixels
QUERIES = 50


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--clip", type=Path, default=DEFAULT_CLIP, help="a CLIP's folder (default: the shipped one)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # a folder: in a process of its own
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.clip)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), args.pictures)
        command = [sys.executable, "-m", "benchmarks.search", "--clip", str(args.clip), "--measure", folder]
        first, again = (
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(2)
        )
    size = f"an index of {first['bytes'] / 2**20:.1f} MiB"
    print(f"{args.pictures} pictures of {SIDE}x{SIDE}, CLIP {args.clip.name}; {size}.\n")
    print("| | seconds | peak memory above the start, MiB |\n|---|--:|--:|")
    print(f"| build the index | {first['index']:.1f} | {first['memory']:.0f} |")
    print(f"| open it again, nothing new | {again['index']:.2f} | {again['memory']:.0f} |")
    print(f"| a query by text, CLIP and index at hand | {again['query']:.4f} | |")
    return 0


def draw(folder: Path, count: int) -> None:
    draws = random.Random(0)
    for i in range(count):
        image = Image.new("RGB", (SIDE, SIDE), tuple(draws.choices(range(256), k=3)))
        left, top = draws.randrange(SIDE // 2), draws.randrange(SIDE // 2)
        box = (left, top, left + draws.randrange(8, SIDE // 2), top + draws.randrange(8, SIDE // 2))
        shape = draws.choice((ImageDraw.Draw(image).ellipse, ImageDraw.Draw(image).rectangle))
        shape(box, fill=tuple(draws.choices(range(256), k=3)))
        image.save(folder / f"{i:06}.png", compress_level=1)


def measure(folder: Path, clip: Path) -> dict[str, float]:
    """Opens CLIP, brings the index up to date, asks: seconds of each, the memory that it took, the index's size."""
    ranker = Ranker(clip)
    ranker.texts(["a red circle"])  # what the first call takes is no part of a query
    before = peak_memory()
    start = time.perf_counter()
    index = read_all(folder, ranker, None)
    built = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(QUERIES):
        index.search(ranker.texts([f"a red circle {i}"])[0], 10)
    query = (time.perf_counter() - start) / QUERIES
    size = (folder / INDEX).stat().st_size
    return {"index": built, "query": query, "memory": peak_memory() - before, "bytes": size}


if __name__ == "__main__":
    sys.exit(main())
