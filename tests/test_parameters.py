"""A request in AUTOMATIC1111's form, and the forms of it that other programs write."""

from dataclasses import replace

import pytest

from diffusion.parameters import read_parameters, split_parameters, write_parameters
from diffusion.request import Request, Resolved

PLAIN = Resolved(
    "a cat", seed=42, steps=20, sampler="euler_ancestral", schedule="karras", guidance=7.0, width=512, height=512
)
LINE = "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.0, Seed: 42, Size: 512x512"


def test_form() -> None:
    assert write_parameters(PLAIN, {"Model": "name"}) == f"a cat\n{LINE}, Model: name"
    assert write_parameters(replace(PLAIN, negative="a dog"), {}) == f"a cat\nNegative prompt: a dog\n{LINE}"
    assert write_parameters(replace(PLAIN, prompt=""), {}) == f"\n{LINE}"


@pytest.mark.parametrize("name", ["a, b", "a: b", "a\nb", 'a "b"', '"', "a, Seed: 7, x", "月", " a ", "\\", "\\u002c"])
def test_names_of_models_are_quoted(name: str) -> None:
    _, _, fields = split_parameters(write_parameters(PLAIN, {"Model": name, "Version": "oboro"}))
    assert (fields["Model"], fields["Seed"], fields["Version"]) == (name, "42", "oboro")


# What other programs write, whole: in the forms of their documentation and of files that people share.
CAT = Request("a cat", "a dog", seed=7, steps=20, sampler="Euler a", guidance=7.0, width=512, height=768)
USUAL = "a cat\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 7, Size: 512x768"
OTHERS = {
    "2022": (f"{USUAL}, Model hash: 45dee52b", CAT),
    "schedule in the sampler": (
        "a cat\nSteps: 9, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 1, Size: 512x512, Model hash: 6ce0161689, "
        "Model: v1-5-pruned-emaonly, Version: v1.6.0",
        Request("a cat", seed=1, steps=9, sampler="DPM++ 2M Karras", guidance=7.5, width=512, height=512),
    ),
    "schedule by itself": (
        "a cat\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 7, "
        "Size: 512x768, Model hash: 6ce0161689, Model: v1-5, VAE hash: 735e4c3a44, VAE: v.pt, Version: v1.10.1",
        replace(CAT, schedule="Karras"),
    ),
    "LoRA and embeddings": (
        f'{USUAL}, Lora hashes: "paint: 0a1b2c3d4e5f, thick: ffeeddccbbaa", '
        'TI hashes: "EasyNegative: c74b4e810b03, EasyNegative: c74b4e810b03", Version: v1.7.0',
        CAT,
    ),
    "tags in the prompt": (
        USUAL.replace("a cat", "<lora:paint, thick:0.8> (a cat:1.2), [a|b]"),
        replace(CAT, prompt="<lora:paint, thick:0.8> (a cat:1.2), [a|b]"),
    ),
    "two passes": (
        f"{USUAL}, Denoising strength: 0.4, Clip skip: 2, ENSD: 31337, Hires upscale: 2, Hires steps: 10, "
        "Hires upscaler: Latent",
        replace(CAT, clip_skip=2, hires_scale=2.0, hires_steps=10, hires_strength=0.4, hires_upscaler="Latent"),
    ),
    "from an image, which the form does not hold": (f"{USUAL}, Denoising strength: 0.75, Mask blur: 4", CAT),
    "two passes of a plugin's": (
        f"{USUAL}, Hires upscale: 1.5, Hires upscaler: 4x-UltraSharp",
        replace(CAT, hires_scale=1.5, hires_upscaler="4x-UltraSharp"),
    ),
    "plugins": (
        f'{USUAL}, RP Active: True, RP Divide mode: Matrix, ControlNet 0: "Module: canny, Model: '
        'control_v11p_sd15_canny [d14c016b], Weight: 1, Processor Res: 512", Version: f2.0.1v1.10.1',
        CAT,
    ),
    "a plugin's own prompt": (
        f'{USUAL}, ADetailer model: face_yolov8n.pt, ADetailer prompt: "a face, Seed: 1, \\"sharp\\"\\nSteps: 3", '
        "ADetailer version: 23.11.1, Version: v1.6.1",
        CAT,
    ),
    "Hashes in JSON": (
        f'{USUAL}, Hashes: {{"model": "6ce0161689", "vae": "735e4c3a44", "lora:paint": "0a1b2c3d4e"}}, Version: v1.6.0',
        CAT,
    ),
    "a gallery's resources": (
        f'{USUAL}, Clip skip: 2, Created Date: 2024-08-15T14:03:11.2183943Z, Civitai resources: [{{"type":"checkpoint",'
        '"modelVersionId":128713},{"type":"lora","weight":0.8,"modelVersionId":2}], Civitai metadata: {}',
        replace(CAT, clip_skip=2),
    ),
    "Forge and Flux": (
        "a cat\nSteps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 7, "
        "Size: 896x1152, Model hash: c161224931, Model: flux1-dev-bnb-nf4, Version: f2.0.1v1.10.1, Module 1: ae",
        Request("a cat", "", 7, 20, "Euler", "Simple", 1.0, 896, 1152),
    ),
    "a node of ComfyUI": (
        "a cat\nNegative prompt: a dog\nSteps: 20, Sampler: euler_ancestral, Scheduler: normal, CFG scale: 7.0, "
        "Seed: 7, Size: 512x768, Model hash: 6ce0161689, Model: v1-5, Version: ComfyUI",
        replace(CAT, sampler="euler_ancestral"),
    ),
    "SD.Next, in another order": (
        "a cat\nNegative prompt: a dog\nSteps: 20, Size: 512x768, Sampler: Euler a, Seed: 7, CFG scale: 7, "
        "App: SD.Next, Version: 4ee4e48, Operations: txt2img, Model: v1-5",
        CAT,
    ),
    "Fooocus": (
        f'{USUAL}, Sharpness: 2, Base model: juggernautXL, Fooocus V2 Expansion: "a cat, cinematic", '
        "Styles: \"['Fooocus V2', 'Sharp']\"",
        CAT,
    ),
    "lines after the fields": (f"{USUAL}\nTemplate: a {{cat|dog}}\nNegative Template: a dog", CAT),
    "line ends of Windows": (USUAL.replace("\n", "\r\n") + "\r\n", CAT),
    "prompts of several lines": (
        "a cat,\n\nsits\nBREAK\nfar\nNegative prompt: a dog,\nrain\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 7",
        replace(CAT, prompt="a cat,\n\nsits\nBREAK\nfar", negative="a dog,\nrain", width=None, height=None),
    ),
    "no prompt": (USUAL.rpartition("\n")[2], replace(CAT, prompt="", negative="")),
    "a negative prompt alone": (USUAL.removeprefix("a cat\n"), replace(CAT, prompt="")),
    "a prompt alone": ("a cat, a dog", Request("a cat, a dog")),
    "prompts alone": ("a cat\nNegative prompt: a dog", Request("a cat", "a dog")),
    "a prompt like fields": ("style: oil, size: big", Request("style: oil, size: big")),
    "nothing": ("", Request("")),
    "what no program writes": ("\x00\ud800, : ,:,\n\n:::", Request("\x00\ud800, : ,:,\n\n:::")),
}


@pytest.mark.parametrize(("text", "request_"), OTHERS.values(), ids=OTHERS)
def test_forms_of_other_programs(text: str, request_: Request) -> None:
    assert read_parameters(text) == request_


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Steps: many, Sampler: Euler, Seed: 1", "Steps is 'many'"),
        ("Steps: 1, Seed: 1, Size: big", "Size is 'big'"),
        ("Steps: 1, Seed: 1, Size: 512x-1", "Size is '512x-1'"),
        ("Steps: 1, Seed: 1e3, Size: 1x1", "Seed is '1e3'"),
        ("Steps: 1, Seed: , Size: 1x1", "Seed is ''"),
        ("Steps: 1, CFG scale: 7,5x, Seed: 1, CFG scale: high", "CFG scale is 'high'"),
        (f"Steps: {'9' * 9999}, Seed: 1, Size: 1x1", "9…'"),
    ],
)
def test_values_that_are_none(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^The picture's parameters are broken: .{1,120}\.$") as mistake:
        read_parameters(f"a cat\n{line}")
    assert said in str(mistake.value)
