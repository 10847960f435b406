"""The prompt model: trained on captions, opened by transformers, completing and scoring; the n-grams beside it."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from recipes import trace, write_recipe

from benchmarks.language import NGrams
from clip.language import BOUNDARY, SHIPPED, PromptModel, main, train_tokenizer
from clip.language_model import Sampling
from diffusion import sample
from diffusion.metadata import request_of
from diffusion.open import open_pipeline
from diffusion.texts import read_texts
from train import language
from train.language import batch, held_out

ROOT = Path(__file__).parent.parent
TEXTS = [
    "a red apple",
    "a blue star on a white background",
    "赤いりんごの3Dイラスト",
    "  Two   spaces, CAPITALS.",
    "🍎",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts folder of the tiny recipe, after three steps."""
    folder = tmp_path_factory.mktemp("language")
    assert language.main([str(write_recipe(folder)), "--out", str(folder / "run"), "--precision", "no"]) == 0
    return folder / "run" / "prompts"


@pytest.fixture(scope="module")
def prompts(trained: Path) -> PromptModel:
    return PromptModel.from_folder(trained)


def test_training_taken_up_from_a_checkpoint_ends_the_same(trained: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    shutil.copytree(trained.parent, run)
    shutil.rmtree(run / "prompts")
    shutil.rmtree(run / "language" / "checkpoints" / "step-00000003")  # as if it had been killed after the second
    assert language.main([str(recipe), "--out", str(run), "--precision", "no"]) == 0
    assert (run / "prompts" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert trace(run / "language") == trace(trained.parent / "language")


@torch.no_grad()
def test_transformers_opens_the_folder(trained: Path, prompts: PromptModel) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    for text in TEXTS:
        ids = prompts.encode(text)
        assert tokenizer(text)["input_ids"] == ids[1:]
        row = torch.tensor([[*ids, *prompts.model.config.end_token_ids]])
        loss = theirs(row, labels=row).loss.item()  # the mean over all but the first
        assert prompts.bits(text) == pytest.approx(loss * (row.shape[1] - 1) / math.log(2), rel=1e-5)
        assert prompts.bits_per_byte(text) == prompts.bits(text) / len(text.encode())


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS[:2], vocab_size=300)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id(BOUNDARY) == 0


def test_completions_go_on_from_the_prompt(prompts: PromptModel) -> None:
    texts = [prompts.complete("a red ", Sampling(), seed) for seed in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]
    assert all(text.startswith("a red") for text in texts)
    assert prompts.complete("", Sampling(), most=3)


def test_batches_are_shifted_cut_and_masked(prompts: PromptModel) -> None:
    ids, targets = batch(prompts, ["a red circle", "a", "a blue square " * 20])
    (end,) = prompts.model.config.end_token_ids
    assert ids.shape == targets.shape == (3, 32)
    for row, target, text in zip(ids[:2], targets[:2], ("a red circle", "a"), strict=True):
        known = [*prompts.encode(text), end]
        assert row[: len(known) - 1].tolist() == known[:-1]
        assert target.tolist() == known[1:] + [-100] * (33 - len(known))
    assert targets[2, -1] == end


def test_held_out_captions_are_not_trained_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    monkeypatch.setattr(language, "batch", lambda prompts, texts: seen.extend(texts) or batch(prompts, texts))
    recipe = write_recipe(tmp_path)
    captions = [json.loads(line) for line in (tmp_path / "pictures" / "metadata.jsonl").read_text().splitlines()]
    kept = next(f"caption {i}" for i in range(99) if not held_out(f"caption {i}"))
    unseen = next(f"caption {i}" for i in range(99) if held_out(f"caption {i}"))
    lines = [json.dumps(row | {"text": [kept, unseen]}) for row in captions]
    (tmp_path / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    assert language.main([str(recipe), "--out", str(tmp_path / "run"), "--precision", "no"]) == 0
    assert set(seen) == {kept}


# the command


def test_command_completes_and_scores(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a red", "a", "--count", "2", "--seed", "3", "--model", str(trained), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [("a red", 3), ("a red", 4), ("a", 3), ("a", 4)]
    assert main(["a red", "--seed", "4", "--model", str(trained)]) == 0
    assert capsys.readouterr().out == f"{lines[1]['text']}\n"
    assert main(["a red circle", "--score", "--model", str(trained)]) == 0
    assert float(capsys.readouterr().out.split()[0]) > 0


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["--count", "0"], "--count is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--top-p", "2"], "top_p is 2.0"),
        (["--model", "nowhere"], "no folder nowhere"),
    ],
)
def test_mistakes_are_one_sentence(
    asked: list[str], sentence: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in asked else ["--model", str(trained)]
    assert main(["a red", *model, *asked]) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        PromptModel.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        PromptModel.from_folder(tmp_path)


# the shipped one


def test_shipped_model_is_small_and_knows_both_languages() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 10e6
    prompts = PromptModel.from_folder()
    for caption, scrambled in (
        ("a red apple", "apple red a"),
        ("青い傘のフラットなイラスト", "傘フラトなイラのスト青い"),
    ):
        assert prompts.bits(caption) < 0.7 * prompts.bits(scrambled)
    assert tokenizers.Tokenizer.from_file(str(SHIPPED / "tokenizer.json")).get_vocab_size() == 2048


def test_command_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "clip.language", "a red"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a red")
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "clip.language_model" in modules
    assert not {"torch._dynamo", "sympy", "transformers", "diffusion"} & modules


def test_expanded_prompts_are_recorded_with_the_short_ones(tmp_path: Path, tiny_model: Path) -> None:
    command = ["a", "--expand", "--count", "2", "--steps", "1", "--model", str(tiny_model), "--out", str(tmp_path)]
    assert sample.main(command) == 0
    requests = [request_of(read_texts(path.read_bytes())) for path in sorted(tmp_path.glob("*.png"))]
    assert len({request.prompt for request in requests}) == 2
    for request in requests:
        assert request.expanded_from == "a"
        assert request.prompt.startswith("a")
        assert request.prompt == PromptModel.from_folder().complete("a", Sampling(0.8), request.seed, sample.EXPANSION)


def test_pictures_of_which_the_best_is_kept_share_a_prompt(tiny_model: Path) -> None:
    args = sample.arguments().parse_args(
        ["a", "--expand", "--count", "2", "--best-of", "2", "--model", str(tiny_model)]
    )
    requests = sample.requests_of(args, open_pipeline(str(tiny_model)))
    assert [request.seed for request in requests] == [0, 1, 2, 3]
    first, again, second, too = (request.prompt for request in requests)
    assert first == again != second == too


# n-grams


def test_n_gram_probabilities_sum_to_one() -> None:
    model = NGrams([[0, 1, 2, 3, 1, 2, 0], [0, 2, 2, 1, 0]], vocabulary=5)
    for context in ([], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3, 1], [4, 4], [3, 0]):
        assert sum(model.probability(context, token) for token in range(5)) == pytest.approx(1)
    assert model.probability([0, 1, 2, 3], 1) > model.probability([0, 1, 2, 3], 2)
    assert model.bits([0, 4, 0]) > model.bits([0, 2, 0])
