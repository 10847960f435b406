"""What independent programs read from our pictures: prompts and settings, on prompts made to mislead them."""

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_parameters import PLAIN

from diffusion.parameters import split_parameters, write_parameters
from diffusion.texts import encode_picture, read_texts

# Prompt, negative prompt and the fields of the line that are looked at, by their names there.
Read = tuple[str, str, dict[str, str]]

FIELDS = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7.0", "Seed": "42"}
PROMPTS = {
    "plain": "a cat",
    "empty": "",
    "blank": " \n ",
    "mark inside": "a cat, Negative prompt: a dog",
    "mark at the beginning": "Negative prompt: a dog",
    "mark twice": "Negative prompt: a dog Negative prompt: a bird\nNegative prompt: rain",
    "whole form": "a cat\nNegative prompt: a dog\nSteps: 3, Sampler: Euler, Seed: 1",
    "line of fields": "  Steps: 3, Sampler: Euler, CFG scale: 1.0, Seed: 1, Size: 8x8",
    "steps": "Steps: 3",
    "steps inside": "a cat, Steps: 3, Seed: 1",
    "template": "a cat\nTemplate: b\nNegative Template: c\nd",
    "quotes": """a "cat", it said: 'Meow' """ + r"\ \" \n \u002c",
    "lines": "two\nlines\n\nand a fourth",
    "lines of other systems": "a\r\nb\tc\u2028d",
    "Japanese": "霞む山と赤い月、桜",
    "Japanese colon": "否定：犬\nSteps：3",
    "beyond the basic plane": "café ☃ \U0001f34e \U00020bb7野家",
    "bytes of surrogates": "Straße, ホテル",
    "braces": "{cat|dog}, a {hat}",
    "JSON": '{"prompt": "a dog", "steps": 3}',
    "tags": "<lora:x:0.5> (cat:1.3) [a:b:0.5] a AND b BREAK c",
    "Hashes": 'Hashes: {"model": "x"}',
    "long": ("word " * 2000)[:10_000],
    "long Japanese": "霞む山と" * 2500,
    "long trap": "Negative prompt: x\nSteps: 3, " * 333,
}
NAMES = ["name", "a, b", "x, Seed: 7, Steps: 3", "a: b", 'say "x"', "v1 [abc]", "月", 'Hashes: {"a": "b"}']


def automatic1111(file: bytes) -> Read:
    """How the web UI itself reads: by lines, a mark at a line's beginning, fields in the last line."""
    with Image.open(io.BytesIO(file)) as image:
        text = image.info.get("parameters")
        if text is None:
            piexif = pytest.importorskip("piexif.helper")
            text = piexif.UserComment.load(image.getexif().get_ifd(0x8769)[0x9286])
    *lines, last = text.strip().split("\n")
    fields = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(fields) >= 3
    prompt: list[str] = []
    negative: list[str] = []
    into = prompt
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            into, line = negative, line[16:].strip()
        into.append(line)
    return "\n".join(prompt), "\n".join(negative), dict(fields)


def ours(file: bytes) -> Read:
    return split_parameters(read_texts(file)["parameters"])


ALIVE: list[Image.Image] = []  # this reader knows pictures by their address, which must not be that of an earlier one


def sd_parsers(file: bytes) -> Read:
    manager = pytest.importorskip("sd_parsers").ParserManager()
    ALIVE.append(Image.open(io.BytesIO(file)))
    found = manager.parse(ALIVE[-1])
    (sampler,) = found.samplers
    fields = {"Sampler": sampler.name, "Model": sampler.model.name, "Size": found.metadata["Size"]}
    for field, name in (("Steps", "steps"), ("Seed", "seed"), ("CFG scale", "cfg_scale")):
        fields[field] = sampler.parameters[name]
    return found.full_prompt, found.full_negative_prompt, fields


def sd_prompt_reader(file: bytes) -> Read:
    reason = "pip install --no-deps sd-prompt-reader (it asks for a Pillow of long ago)"
    module = pytest.importorskip("sd_prompt_reader.image_data_reader", reason=reason)
    found = module.ImageDataReader(io.BytesIO(file))
    assert found.tool == "A1111 webUI"
    names = {"Model": "model", "Sampler": "sampler", "Seed": "seed", "CFG scale": "cfg", "Steps": "steps"}
    return found.positive, found.negative, {field: found.parameter[name] for field, name in names.items()}


READERS: list[Callable[[bytes], Read]] = [ours, automatic1111, sd_parsers, sd_prompt_reader]


def words(text: str) -> list[str]:
    """What CLIP's tokenizer sees of a text: lower case, and one space for many."""
    return text.lower().split()


def file_of(prompt: str, negative: str, model: str = "name", format: str = "PNG") -> bytes:
    fields = {"Model hash": "0123456789", "Model": model, "Version": "oboro 0.1"}
    text = write_parameters(replace(PLAIN, prompt=prompt, negative=negative), fields)
    texts = {"parameters": text, "oboro": json.dumps({"prompt": prompt})}
    return encode_picture(Image.new("RGB", (8, 8)), texts, format)


def check(found: Read, prompt: str, negative: str) -> None:
    read_prompt, read_negative, fields = found
    assert words(read_prompt) == words(prompt)
    assert words(read_negative) == words(negative)
    assert {name: fields[name] for name in FIELDS} == FIELDS


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(reader: Callable[[bytes], Read], name: str, format: str) -> None:
    if (reader, format, name) in [(sd_prompt_reader, other, "bytes of surrogates") for other in ("JPEG", "WEBP")]:
        pytest.skip("it tries the text in the wrong order of bytes first, and gives up where that is not valid")
    for other in (PROMPTS[name] for name in ("empty", "plain", "whole form", "lines")):
        for prompt, negative in ((PROMPTS[name], other), (other, PROMPTS[name])):
            check(reader(file_of(prompt, negative, format=format)), prompt, negative)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NAMES)
def test_names_of_models(reader: Callable[[bytes], Read], name: str) -> None:
    found = reader(file_of("a cat", "a dog", name))
    check(found, "a cat", "a dog")
    read = found[2]["Model"]
    assert name in (read, json.loads(read) if read.startswith('"') else read)  # some leave the quotes


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_prompts_and_names_in_node(tmp_path: Path, format: str) -> None:
    files = {}
    for prompt in PROMPTS.values():
        for negative in (PROMPTS["empty"], PROMPTS["whole form"]):
            files[tmp_path / f"{len(files)}.png"] = prompt, negative, "name"
    for name in NAMES:
        files[tmp_path / f"{len(files)}.png"] = "a cat", "a dog", name
    for path, texts in files.items():
        path.write_bytes(file_of(*texts, format))
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = Path(__file__).with_name("readers.mjs")
    done = subprocess.run([node, script, *files], capture_output=True, text=True)
    if "Cannot find module 'stable-diffusion-image-metadata'" in done.stderr:
        pytest.skip("npm install --no-save stable-diffusion-image-metadata")
    read = [json.loads(line) for line in done.stdout.strip().split("\n")]
    assert len(read) == len(files), done.stderr
    for found, (prompt, negative, _) in zip(read, files.values(), strict=True):
        names = {"Steps": "steps", "Sampler": "sampler", "CFG scale": "cfgScale", "Seed": "seed"}
        fields = {field: found[name] for field, name in names.items()}
        check((found["prompt"], found["negativePrompt"], fields), prompt, negative)
        assert (found["width"], found["height"]) == (512, 512)
