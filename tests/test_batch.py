"""The batch command: rows in, pictures and a manifest out, whatever is killed on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusion.batch import main
from diffusion.jobs import main as jobs
from diffusion.manifest import Manifest
from diffusion.metadata import model_digest, request_of
from diffusion.open import open_pipeline
from diffusion.request import Request, from_json
from diffusion.rows import Axis, expand, read_rows
from diffusion.rows import request_of as asked_of
from diffusion.sheet import labelled, shown
from diffusion.store import Store
from diffusion.texts import read_texts

ROOT = Path(__file__).parent.parent
Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def manifest(out: Path, name: str = "manifest.jsonl") -> Rows:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def batch(model: Path, file: Path, out: Path, *flags: str) -> int:
    return main([str(file), "--out", str(out), "--model", str(model), *flags])


def test_rows_of_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a red apple", "seed": 3, "guidance": 2.5, "loras": [["ink", 0.8]], "mask": "m/x.png"}]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.csv").write_text('prompt,seed,guidance,loras,mask,steps\n"a red apple",3,2.5,ink:0.8,m/x.png,\n')
    (tmp_path / "a.txt").write_text("\ufeffa red apple\n\n  りんご \n", encoding="utf-8")
    said = rows[0] | {"mask": tmp_path / "m/x.png"}
    assert [row for _, row in read_rows(tmp_path / "a.jsonl")] == [said]
    ((where, row),) = read_rows(tmp_path / "a.csv")
    assert where == f"{tmp_path / 'a.csv'}, line 2"
    assert row == said | {"loras": (("ink", 0.8, None, None),)}
    assert [row for _, row in read_rows(tmp_path / "a.txt")] == [{"prompt": "a red apple"}, {"prompt": "りんご"}]


def test_every_field_of_a_request_is_a_column(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"a file")
    row = {
        "prompt": "a", "negative": "b", "steps": "3", "sampler": "heun", "schedule": "9,1.5,0", "width": "16",
        "guidance_interval": "0.5,9", "outpaint": "0,0,8,0", "image": "x.png", "eta": "0.5", "clip_skip": "2",
    }  # fmt: skip
    (tmp_path / "a.csv").write_text(",".join(row) + "\n" + ",".join(f'"{cell}"' for cell in row.values()))
    ((_, said),) = read_rows(tmp_path / "a.csv")
    assert asked_of(said, 0) == Request(
        "a", "b", steps=3, sampler="heun", schedule=(9.0, 1.5, 0.0), width=16, guidance_interval=(0.5, 9.0),
        outpaint=(0, 0, 8, 0), image=b"a file", eta=0.5, clip_skip=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"promt": "a"}', "line 2: There is no column 'promt'; the nearest is 'prompt'."),
        ("a.csv", "prompt,guidence\na,2", "line 1: There is no column 'guidence'; the nearest is 'guidance'."),
        ("a.csv", "prompt,steps\na,two", "line 2: The steps is 'two', which cannot be read as such."),
        ("a.csv", "prompt\na,b", "line 2: The row has more cells than there are columns."),
        ("a.jsonl", "[1]", "line 1: The row is [1]; expected an object of JSON."),
        ("a.jsonl", "{", "line 1: The row is not JSON"),
        ("a.jsonl", '{"seed": 1}', "line 1: The row has no prompt"),
        ("a.txt", "\n", "has no rows"),
        ("a.jsonl", '{"prompt": "a", "steps": -1}', "line 1: The number of steps is -1"),
        ("a.jsonl", '{"prompt": "a", "image": "none.png"}', "none.png: No such file"),
        ("a.yaml", "a", "is a job file of no known kind"),
    ],
)
def test_mistakes_name_their_line(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    assert batch(tiny_model, tmp_path / name, tmp_path / "out", "--dry-run") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--x", "smpler=a,b"], "There is no column 'smpler'; the nearest is 'sampler'."),
        (["--x", "steps=1,two"], "The steps is 'two'"),
        (["--set", "steps=1,2"], "--set steps has 2 values; give one, or a grid by --x."),
        (["--shard", "4/4"], "--shard is '4/4'; expected as 0/4"),
        (["--shard", "0/2", "--x", "steps=1,2"], "leave --shard and --pictures out"),
        (["--pictures", "file:///tmp"], "--pictures is for the actors of --ray"),
        (["--workers", "0"], "--workers is 0; expected 1 or more."),
    ],
)
def test_mistakes_in_flags(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture, flags: list[str], said: str
) -> None:
    (tmp_path / "a.txt").write_text("a red apple")
    assert batch(tiny_model, tmp_path / "a.txt", tmp_path / "out", "--dry-run", *flags) == 2
    assert said in capfd.readouterr().err


def test_a_row_expands_by_its_prompt_then_seeds_then_axes() -> None:
    x, y = Axis.of('prompt="a, b",c'), Axis.of("guidance=2,5")
    assert x.values == ("a, b", "c")
    rows = expand({"prompt": "{e$$a|b} {c|d}", "seed": 7}, 2, Axis.of("steps=1,2"), y)
    said = [(row["prompt"], row["seed"], row["guidance"], row["steps"]) for row in rows]
    assert said[:5] == [("a {c|d}", 7, 2.0, 1), ("a {c|d}", 7, 2.0, 2), ("a {c|d}", 7, 5.0, 1), ("a {c|d}", 7, 5.0, 2),
                        ("a {c|d}", 8, 2.0, 1)]  # fmt: skip
    assert len(said) == 16


def test_a_seed_that_is_drawn_is_drawn_again_alike() -> None:
    drawn = [asked_of({"prompt": "a", "seed": -1}, place).seed for place in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert asked_of({"prompt": "b", "seed": -1}, 0).seed != drawn[0]


def test_sheets_have_labels_that_the_font_can_show() -> None:
    red, tall = Image.new("RGB", (80, 40), "red"), Image.new("RGB", (80, 60), "blue")
    made = labelled([red, None, tall, red], ["steps=1", "steps=2"], ["a", "りんご"])
    assert shown("りんご") == "\\u308a\\u3093\\u3054"
    left, top = made.width - 160, made.height - 120
    assert left > 80 > top > 14
    assert [made.getpixel((left + x, top + y)) for x, y in ((5, 5), (85, 5), (5, 115), (85, 65))] == [
        (255, 0, 0), (255, 255, 255), (0, 0, 255), (255, 0, 0)
    ]  # fmt: skip
    assert made.crop((0, 0, left, made.height)).convert("L").getextrema()[0] < 100  # something is written there
    longer = labelled([red], ["guidance=2 and a prompt that is longer than its picture is wide"], [""])
    assert longer.width > 300


def test_a_batch_makes_what_is_missing_and_says_what_it_made(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    rows: Rows = [{"prompt": "a red apple", "seed": seed, "steps": 1} for seed in range(4)]
    rows += [rows[0], {"prompt": "a blue star", "seed": -1, "steps": 1, "sampler": "heun", "guidance": 1.0}]
    file, out = write(tmp_path / "jobs.jsonl", rows), tmp_path / "out"
    assert batch(tiny_model, file, out, "--dry-run") == 0
    planned = [Path(line).name for line in capfd.readouterr().out.splitlines()]
    assert batch(tiny_model, file, out, "--batch", "2") == 0
    made, said = pictures(out), manifest(out)
    assert made.keys() == {*planned} == {row["path"] for row in said}
    assert len(said) == 5
    for row in said:
        request = request_of(read_texts(made[row["path"]]))
        assert (request.prompt, request.seed) == (row["request"]["prompt"], row["seed"])
        assert row["state"] == "done"
        assert row["error"] is None
        assert row["seconds"] > 0
    # Deleted, new and forgotten rows: a run makes exactly what is missing.
    (out / planned[1]).unlink()
    before = {name: (out / name).stat().st_mtime_ns for name in made if name != planned[1]}
    write(file, [*rows[:4], {"prompt": "a red apple", "seed": 9, "steps": 1}])
    assert batch(tiny_model, file, out, "--batch", "2") == 0
    assert {name: pictures(out)[name] for name in made} == made
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert sorted(row["seed"] for row in manifest(out)) == [0, 1, 2, 3, 9]
    assert not [path for path in out.iterdir() if path.suffix == ".part"]


def test_shards_make_the_whole_between_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Rows = [{"prompt": "a red apple", "seed": seed, "steps": 1} for seed in range(3)]
    file, out = write(tmp_path / "jobs.jsonl", rows), tmp_path / "out"
    assert batch(tiny_model, file, out, "--shard", "0/2") == 0
    assert [row["seed"] for row in manifest(out, "manifest-0-of-2.jsonl")] == [0, 2]
    monkeypatch.setenv("RANK", "1")  # as accelerate launch has it
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert batch(tiny_model, file, out) == 0
    assert [row["seed"] for row in manifest(out, "manifest-1-of-2.jsonl")] == [1]
    assert len(pictures(out)) == 3


def test_what_cannot_be_made_is_in_the_manifest_with_its_error(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    rows: Rows = [{"prompt": "a red apple", "seed": seed, "steps": 1} for seed in range(3)]
    file, out = write(tmp_path / "jobs.jsonl", rows), tmp_path / "out"
    assert batch(tiny_model, file, out, "--dry-run") == 0
    name = Path(capfd.readouterr().out.splitlines()[1]).name
    (out / name).mkdir(parents=True)  # no file can take this place
    assert batch(tiny_model, file, out, "--batch", "3") == 1
    assert "1 of 3 pictures could not be made" in capfd.readouterr().err
    parked = [row for row in manifest(out) if row["state"] == "parked"]
    assert [(row["path"], row["seed"]) for row in parked] == [(None, 1)]
    assert "Is a directory" in parked[0]["error"]
    (out / name).rmdir()
    assert batch(tiny_model, file, out) == 0
    assert sorted(row["seed"] for row in manifest(out)) == [0, 1, 2]


@pytest.fixture
def store(tiny_model: Path, tmp_path: Path) -> Store:
    """Of one picture that is done, by no worker."""
    pipeline, store = open_pipeline(tiny_model), Store(tmp_path / "out")
    store.submit([pipeline.resolve(Request("a red apple"))], pipeline.model)
    (job,) = store.lease("a", model_digest(pipeline.model), 1, 60)
    assert store.deliver(job, "a", b"a picture")
    return store


def test_the_jobs_command(tiny_model: Path, store: Store, capfd: pytest.CaptureFixture) -> None:
    assert jobs([str(store.folder / "none")]) == 2
    assert "There are no jobs in" in capfd.readouterr().err
    assert jobs([str(store.folder), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["state"], said["request"]["prompt"]) == ("done", "a red apple")
    assert jobs([str(store.folder), "--cancel", said["id"]]) == 2
    assert "Nothing is cancelled" in capfd.readouterr().err
    model = open_pipeline(tiny_model).model
    (queued,) = store.submit([store.get(said["id"]).request], model)
    assert jobs([str(store.folder), "--cancel", queued.group]) == 0
    assert jobs([str(store.folder), "--state", "cancelled"]) == 0
    assert queued.id in capfd.readouterr().out
    assert jobs([str(store.folder), "--retry"]) == 0
    assert store.get(queued.id).state == "queued"
    store.cancel(queued.id)
    assert jobs([str(store.folder), "--watch"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 done, 1 cancelled"


def test_a_manifest_is_whole_after_its_writer_was_killed(store: Store) -> None:
    path, (job,) = store.folder / "manifest.jsonl", store.jobs()
    Manifest(path, store, job.group).begin()
    whole = path.read_bytes()
    assert json.loads(whole)["path"] == job.name
    path.write_bytes(whole[:50])  # half a row
    again = Manifest(path, store, job.group)
    again.begin()
    again.follow()
    assert path.read_bytes() == whole
    assert again.rows == 1


def start(model: Path, file: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "diffusion.batch", str(file), "--out", str(out), "--model", str(model)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # What a shell runs in its background ignores Ctrl-C, and so would all that it starts.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The process ids of its workers."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in path.read_text().split()}
    return [pid for pid, line in lines.items() if b"spawn_main" in line]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_killed_workers_and_drivers_lose_nothing(tiny_model: Path, tmp_path: Path) -> None:
    rows: Rows = [{"prompt": "a red apple", "seed": seed, "steps": 8} for seed in range(30)]
    file, out, draw = write(tmp_path / "jobs.jsonl", rows), tmp_path / "out", random.Random(0)

    def until(count: int) -> None:
        while process.poll() is None and len(pictures(out)) < count:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.05))

    process = start(tiny_model, file, out)
    until(3)
    (worker,) = children(process)
    os.kill(worker, signal.SIGKILL)
    until(9)
    orphans = children(process)
    process.kill()
    process.communicate()
    process = start(tiny_model, file, out)
    until(15)
    assert not [pid for pid in orphans if Path(f"/proc/{pid}").exists()]
    before = {name: (out / name).stat().st_ino for name in pictures(out)}
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert batch(tiny_model, file, out) == 0
    assert {name: (out / name).stat().st_ino for name in before} == before  # nothing was made twice
    assert sorted(row["seed"] for row in manifest(out)) == [*range(30)]
    assert not [path for path in out.iterdir() if path.suffix == ".part"]
    pipeline, made = open_pipeline(tiny_model), pictures(out)
    for row in manifest(out):
        (alone,) = pipeline.generate([from_json(row["request"])])
        assert made[row["path"]] == alone.png()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_killed_batch_holds_no_lease(tiny_model: Path, tmp_path: Path) -> None:
    file, out = write(tmp_path / "jobs.jsonl", [{"prompt": "a red apple", "steps": 1000}]), tmp_path / "out"
    process, kind = start(tiny_model, file, out), model_digest(open_pipeline(tiny_model).model)
    while not out.is_dir() or not Store(out).counts()["running"]:
        time.sleep(0.05)
    (worker,) = children(process)
    process.kill()
    process.communicate()
    while Path(f"/proc/{worker}").exists():  # it ends by itself, for its driver is dead
        time.sleep(0.02)
    (job,) = Store(out).lease("another", kind, 1, 60)  # a server's on the same folder
    assert (job.tries, job.error) == (2, "Its worker was lost.")
