"""The command that explains prompts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusion.prompt import main, when

EXPLAINED = """\
prompt: a (reddish:1.3) 🍎 [cat:りんご:0.4] AND a tower [x|y] :0.7
  drawn from: a (reddish:1.3) 🍎 [cat:りんご:0.4] AND a {tree|tower} [x|y] :0.7
  read as a1111, in chunks of 30 tokens, over 20 steps

  text 1 of 2, weight 1
  steps 1-9: a (reddish:1.3) 🍎 cat
    chunk 1, 9 tokens    a (re·dd·ish ×1.3) 🍎 cat
  steps 10-20: a (reddish:1.3) 🍎 りんご
    chunk 1, 9 tokens    a (re·dd·ish ×1.3) 🍎 りんご

  text 2 of 2, weight 0.7
  steps 1-2, 4, 6, 8, 10, 12, …, 20: a tower x
    chunk 1, 3 tokens    a tower x
  steps 3, 5, 7, 9, 11, 13, …, 19: a tower y
    chunk 1, 3 tokens    a tower y

negative prompt: (bad), BREAK [red]
  read as a1111, in chunks of 30 tokens, over 20 steps

  every step: (bad), BREAK [red]
    chunk 1, 3 tokens    (ba·d ×1.1) ,
    chunk 2, 1 token     (red ×0.9091)
"""


def test_explanation(capfd: pytest.CaptureFixture) -> None:
    prompt = "a (reddish:1.3) 🍎 [cat:りんご:0.4] AND a {tree|tower} [x|y] :0.7"
    assert main([prompt, "--negative", "(bad), BREAK [red]"]) == 0
    assert capfd.readouterr().out == EXPLAINED


def test_json_of_every_combination(capfd: pytest.CaptureFixture) -> None:
    assert main(["a {e$$cat|dog} <lora:ink:0.8>", "--steps", "3", "--syntax", "comfy", "--json"]) == 0
    cat, dog = map(json.loads, capfd.readouterr().out.splitlines())
    assert (cat["prompt"], dog["prompt"], cat["loras"]) == ("a cat ", "a dog ", ["<lora:ink:0.8>"])
    (text,) = dog["texts"]
    (turn,) = text["turns"]
    assert (turn["steps"], turn["text"]) == ([1, 2, 3], "a dog ")
    assert [(piece["text"], piece["tokens"], piece["weight"]) for piece in turn["chunks"][0]] == [
        ("a", 1, 1.0),
        ("dog", 1, 1.0),
    ]


def test_plain_text_has_no_syntax(capfd: pytest.CaptureFixture) -> None:
    assert main(["(a) {b|c} AND", "--syntax", "plain"]) == 0
    assert "  every step: (a) {b|c} AND\n" in capfd.readouterr().out


def test_folders(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    save_file({"emb_params": torch.zeros(3, 32)}, tmp_path / "zorblax.safetensors")
    (tmp_path / "colour.txt").write_text("blue\n")
    folders = ["--embeddings", str(tmp_path), "--wildcards", str(tmp_path)]
    assert main(["a __colour__ (zorblax:1.2) star", "--model", str(tiny_model), *folders]) == 0
    out = capfd.readouterr().out
    assert "chunk 1, 6 tokens    a blue (<zorblax> ×1.2) star\n" in out
    assert "in chunks of 14 tokens" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a (b:2000)"], "The weight of 'b' is 2000"),
        (["a", "--steps", "0"], "--steps is 0; expected 1 to 1000"),
        (["a", "--model", "nowhere"], "There is no model 'nowhere'"),
        (["a __b__", "--wildcards", "nowhere"], "There is no nowhere"),
        (["a " * 40, "--syntax", "plain"], "has 40 tokens and this model reads 30 at once"),
    ],
)
def test_mistakes_are_one_sentence(capfd: pytest.CaptureFixture, argv: list[str], said: str) -> None:
    assert main(argv) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("python -m diffusion.prompt: ")
    assert err.count("\n") == 1
    assert said in err


def test_help_has_examples(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert 'python -m diffusion.prompt "a [cat:dog:0.4] AND' in capfd.readouterr().out


def test_steps_are_named_in_ranges() -> None:
    assert when([1, 2, 3], 3) == "every step"
    assert when([1, 2, 4], 5) == "steps 1-2, 4"
    assert when([2], 5) == "step 2"
