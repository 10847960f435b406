"""python -m benchmarks.hostile: a thousand damaged models, and what became of each.

Each must be refused with a ValueError of one sentence, soon and in little memory, and until then nothing may be
executed, imported, opened for writing or connected: Python's audit events tell. Exit code 1 where one was not.
"""

import argparse
import json
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.damage import Case, cases
from diffusion.adapters import Lora
from diffusion.checkpoint import DEFAULT_MODEL, find_model, load_model
from diffusion.embeddings import Embeddings
from diffusion.files import SUMS, format_sums, sums_of
from diffusion.open import open_pipeline
from diffusion.pipeline import Pipeline
from diffusion.single_file import save_single_file
from diffusion.weights import Safetensors

COUNT = 1000
LONGEST = 600  # characters of a sentence
MIB = 2**20
SENTENCE = re.compile(r"[^\n\r\x00]+\.")
# Audit events of what no model may cause. A module that is loaded for the first time is one, too.
FORBIDDEN = re.compile(
    r"exec|compile|import|marshal\.|pickle\.|code\.|ctypes\.|subprocess\.|socket\.|ssl\.|urllib\.|http\.|ftplib\.|smtplib\."
    r"|os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile|remove|rename|rmdir|mkdir|link|symlink|chmod|chown"
    r"|truncate|utime|putenv|kill)|shutil\.|tempfile\.|cpython\.run|sys\._?(setprofile|settrace)"
)


@dataclass(frozen=True)
class Outcome:
    kind: str
    file: str
    fault: str  # what is wrong with how it was met; empty where nothing is
    said: str
    seconds: float
    mebibytes: float  # of memory, above what was in use before


class Watch:
    """Notes what Python does while it is on. There is no taking an audit hook back, so it is made once."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            if set(mode or "") & set("wax+") or flags & 0o3:  # 0o3: O_WRONLY, O_RDWR
                self.seen.append(f"open {path!r} for writing")
        elif FORBIDDEN.match(event):
            self.seen.append(f"{event} {args!r:.100}")


def attack(load: Callable[[], object], case: Case, watch: Watch) -> Outcome:
    """Loads what the case has damaged, which must not succeed."""
    before = memory()
    start = time.process_time()
    watch.seen.clear()
    watch.on = True
    said, fault = "", "accepted"
    try:
        load()
    except ValueError as error:
        said, fault = str(error), ""
    except BaseException as error:
        said, fault = str(error), type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        watch.on = False
    seconds = time.process_time() - start
    if not fault and (not SENTENCE.fullmatch(said) or len(said) > LONGEST):
        fault = "not one sentence"
    if watch.seen:
        fault = watch.seen[0]
    return Outcome(case.kind, case.file, fault, said, seconds, (memory(peak=True) - before) / MIB)


def memory(peak: bool = False) -> int:
    """Bytes that the process holds, or has held since this was last asked without `peak`."""
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux: the peak since the start, in bytes or KiB as the system likes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    found = re.search(r"^Vm%s:\s*(\d+) kB" % ("HWM" if peak else "RSS"), status.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def run(model: Path, count: int, seed: int) -> list[Outcome]:
    outcomes = []
    watch = Watch()
    with tempfile.TemporaryDirectory() as temporary:
        root, canary = Path(temporary) / "root", Path(temporary) / "executed"
        copy = Path(shutil.copytree(model, root / "model"))
        for folder in ("single", "loras", "embeddings"):
            (root / folder).mkdir()
        save_file(a_lora(copy), root / "loras" / "a.safetensors")
        sums = format_sums(sums_of(copy))
        (copy / SUMS).write_bytes(sums)
        # Whatever a good model makes Python import and open is no news afterwards.
        pipeline = open_pipeline(copy, loras=root / "loras")
        assert isinstance(pipeline, Pipeline)
        width = pipeline.model.text_encoders[0].config.width
        save_file({"emb_params": torch.ones(1, width)}, root / "embeddings" / "a.safetensors")
        single = root / "single" / "a.safetensors"
        save_single_file(single, pipeline.model)
        loads: dict[str, Callable[[], object]] = {
            "model": lambda: open_pipeline(copy),
            "single": lambda: load_model(single, tokenizer=copy / "tokenizer"),
            "loras": lambda: pipeline.adapters.pin([Lora("a")]),
            "embeddings": lambda: Embeddings(pipeline.model, root / "embeddings").vectors("a"),
        }
        for load in loads.values():
            load()
        for case in cases(root, canary, count, seed):
            path = root / case.file
            original = path.read_bytes()
            (copy / SUMS).write_bytes(sums) if case.accident else (copy / SUMS).unlink(missing_ok=True)
            case.damage(path)
            outcomes.append(attack(loads[case.file.partition("/")[0]], case, watch))
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_bytes(original)
        if canary.exists():
            outcomes.append(Outcome("any", "", "executed", "", 0, 0))
    return outcomes


def a_lora(model: Path) -> dict[str, Tensor]:
    """For a layer of the model's U-Net, of rank 1."""
    entries = Safetensors(model / "unet" / "diffusion_pytorch_model.safetensors").entries
    name = next(name for name in sorted(entries) if name.endswith(".attn1.to_q.weight"))
    rows, columns = entries[name].shape
    layer = name.removesuffix(".weight")
    return {f"unet.{layer}.lora_A.weight": torch.ones(1, columns), f"unet.{layer}.lora_B.weight": torch.ones(rows, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, help="the folder whose copies are damaged (default: %(default)s)")
    add("--count", type=int, default=COUNT, help="of damaged files (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    add("--json", action="store_true", help="print a line of JSON a file")
    args = parser.parse_args(argv)
    outcomes = run(find_model(args.model), args.count, args.seed)
    if args.json:
        for outcome in outcomes:
            print(json.dumps(asdict(outcome)))
    else:
        table(outcomes)
    return int(any(outcome.fault for outcome in outcomes))


def table(outcomes: list[Outcome]) -> None:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.kind.partition(":")[0]].append(outcome)
    print("| what is damaged | models | refused | slowest, CPU ms | most memory, MiB |\n|:--|--:|--:|--:|--:|")
    for kind, group in [*groups.items(), ("**all**", outcomes)]:
        refused = sum(not outcome.fault for outcome in group)
        slowest, most = max(o.seconds for o in group) * 1000, max(o.mebibytes for o in group)
        print(f"| {kind} | {len(group)} | {refused} | {slowest:.0f} | {most:.0f} |")
    for outcome in outcomes:
        if outcome.fault:
            print(f"{outcome.file}: {outcome.kind}: {outcome.fault}: {outcome.said[:200]!r}")


if __name__ == "__main__":
    sys.exit(main())
