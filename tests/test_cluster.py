"""The batch command on a real Ray cluster, one node of which is lost in the middle."""

import json
import threading
import time
from pathlib import Path

import pytest

from benchmarks.nodes import cluster
from diffusion.batch import main
from diffusion.shelf import Shared
from diffusion.store import Store

ROWS = [{"prompt": "a red apple", "seed": seed, "steps": 8} for seed in range(24)]


def test_pictures_in_shared_storage(tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/pictures", "memory://pictures"):
        shelf = Shared(url)
        shelf.put("a.png", b"a picture")
        assert (shelf.holds("a.png"), shelf.holds("b.png")) == (True, False)
        assert Shared(url).there == {"a.png"}
        assert shelf.path("a.png") == f"{url}/a.png"
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match=r"nowhere://x cannot be used: Protocol not known"):
        Shared("nowhere://x")


def test_a_cluster_that_is_not_there(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "jobs.txt").write_text("a red apple")
    flags = ["--out", str(tmp_path / "out"), "--model", str(tiny_model), "--ray", "nowhere"]
    assert main([str(tmp_path / "jobs.txt"), *flags]) == 2
    assert "There is no Ray cluster at nowhere" in capfd.readouterr().err


@pytest.mark.slow
def test_a_node_that_is_lost_loses_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))  # the nodes inherit it
    file, calm, shared = tmp_path / "jobs.jsonl", tmp_path / "calm", tmp_path / "shared"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert main([str(file), "--out", str(calm), "--model", str(tiny_model)]) == 0
    with cluster(nodes=2) as (address, nodes):

        def take() -> None:
            while len([*shared.glob("*.png")]) < 8:
                time.sleep(0.05)
            nodes.take()

        thread = threading.Thread(target=take)
        thread.start()
        flags = ["--model", str(tiny_model), "--ray", address, "--workers", "2", "--pictures", f"file://{shared}"]
        assert main([str(file), "--out", str(tmp_path / "out"), *flags]) == 0
        thread.join()
    rows = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rows} == {f"file://{path}" for path in shared.glob("*.png")}
    assert len(rows) == len(ROWS)
    assert {path.name: path.read_bytes() for path in shared.glob("*.png")} == {
        path.name: path.read_bytes() for path in calm.glob("*.png")
    }
    assert Store(tmp_path / "out").counts()["done"] == len(ROWS)
