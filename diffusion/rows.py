"""Job files: rows that say what Requests say => Requests.

    jobs.jsonl    an object a line: {"prompt": "a red apple", "steps": 4, "loras": [["ink", 0.8]]}
    jobs.csv      a column a field, an empty cell for what is not said
    jobs.txt      a prompt a line

Images and masks are named by paths, from the job file's own folder.
"""

import csv
import difflib
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from diffusion.adapters import loras_from_json, parse_lora
from diffusion.flags import read_file
from diffusion.request import DRAWN, FILES, RANDOM, Request, embeddings_from_json
from diffusion.wildcards import combinations

FIELDS = {field.name: get_type_hints(Request)[field.name] for field in fields(Request)}
SEEDS = ("seed", "variation_seed")
Said = dict[str, Any]  # a row: a field of Request => what it says; of a file, its path


@dataclass(frozen=True)
class Axis:
    """A field that a grid varies, and the values that it takes there."""

    field: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Axis":
        """ "sampler=euler,heun" => an axis; a value with a comma in it stands in quotation marks."""
        field, _, values = text.partition("=")
        check_columns([field], f"The axis {text!r}")
        labels = [label.strip() for label in next(csv.reader([values], skipinitialspace=True), [])]
        return cls(field, tuple(parse(field, label) for label in labels), tuple(labels))

    def __bool__(self) -> bool:
        return bool(self.values)


NO_AXIS = Axis("", (), ())


def read_rows(path: Path) -> Iterator[tuple[str, Said]]:
    """Each row, and where it stands. Raises ValueError, in one sentence, for one that cannot be read."""
    readers = {".jsonl": _of_jsonl, ".csv": _of_csv, ".txt": _of_txt}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} is a job file of no known kind; name it {', '.join('*' + kind for kind in readers)}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, said in readers[path.suffix.lower()](file, path):
                where = f"{path}, line {line}"
                check_columns(said, where)
                if not isinstance(said.get("prompt"), str):
                    raise ValueError(f"{where}: The row has no prompt; say what the picture shows.")
                yield where, said | {name: path.parent / str(said[name]) for name in FILES if name in said}
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as such.") from None


def _of_jsonl(file: io.TextIOBase, path: Path) -> Iterator[tuple[int, Said]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                said = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: The row is not JSON: {error}.") from None
            if not isinstance(said, dict):
                raise ValueError(f"{path}, line {number}: The row is {said!r:.50}; expected an object of JSON.")
            yield number, {name: value for name, value in said.items() if value is not None}


def _of_csv(file: io.TextIOBase, path: Path) -> Iterator[tuple[int, Said]]:
    reader = csv.DictReader(file, restkey="")
    for row in reader:
        if "" in row:
            raise ValueError(f"{path}, line {reader.line_num}: The row has more cells than there are columns.")
        check_columns(row, f"{path}, line 1")
        try:
            yield reader.line_num, {name: parse(name, cell) for name, cell in row.items() if cell}
        except ValueError as mistake:
            raise ValueError(f"{path}, line {reader.line_num}: {mistake}") from None


def _of_txt(file: io.TextIOBase, path: Path) -> Iterator[tuple[int, Said]]:
    yield from ((number, {"prompt": line.strip()}) for number, line in enumerate(file, 1) if line.strip())


def check_columns(names: Mapping[str, Any] | Sequence[str], where: str) -> None:
    for name in names:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, n=1, cutoff=0)[0]
            raise ValueError(f"{where}: There is no column {name!r}; the nearest is {near!r}.")


def parse(field: str, text: str) -> Any:
    """What a cell or a flag says of a field: a number, a name, or numbers and names between commas."""
    kinds = get_args(FIELDS[field]) or (FIELDS[field],)
    try:
        if field == "loras":
            return tuple(parse_lora(part.strip()) for part in text.split(","))
        if field == "embeddings":
            return embeddings_from_json(json.loads(text))
        if field in FILES:
            return text
        if int in kinds:
            return int(text)
        if float in kinds:
            return float(text)
        if field == "schedule" and not text[:1].isdigit():
            return text
        if str in kinds and field != "schedule":
            return text
        number: Callable[[str], float] = int if field == "outpaint" else float
        return tuple(number(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"The {field} is {text!r:.80}, which cannot be read as such.") from None


def expand(said: Said, count: int, x: Axis, y: Axis) -> Iterator[Said]:
    """The rows that one stands for: each combination of its prompt, so many seeds of it, all values of the axes.

    Across goes fastest, then down, so that each run of that many is one sheet.
    """
    plain = said.get("prompt_syntax") == "plain"
    downwards, across = ([{axis.field: value} for value in axis.values] or [{}] for axis in (y, x))
    for prompt in [said["prompt"]] if plain else combinations(said["prompt"]):
        for i in range(count):
            for down, right in itertools.product(downwards, across):
                row = said | {"prompt": prompt} | down | right
                seed = "seed" if row.get("variation_strength") is None else "variation_seed"
                start = row.get(seed, 0)
                yield row | ({seed: start + i} if i and isinstance(start, int) and start != RANDOM else {})


def request_of(said: Said, place: int) -> Request:
    """The request of an expanded row. A seed of -1 is drawn from the row and its place: the same in every run."""
    drawn = {name: _draw(said, f"{name} {place}") for name in SEEDS if said.get(name) == RANDOM}
    read = {name: read_file(said[name]) for name in FILES if name in said}
    values: Said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    if isinstance(said.get("loras"), list | tuple):
        values["loras"] = loras_from_json(said["loras"])
    if isinstance(said.get("embeddings"), list):
        values["embeddings"] = embeddings_from_json(said["embeddings"])
    return Request(**values | read | drawn)


def _draw(said: Said, place: str) -> int:
    text = json.dumps([said, place], default=str, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % DRAWN

