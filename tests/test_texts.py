"""Texts in pictures' files: in, out, and what becomes of those that others wrote."""

import io

import pytest
from PIL import Image, ImageChops

from diffusion.texts import FORMATS, NAMESPACE, RDF, encode_picture, read_texts

RED = Image.new("RGB", (9, 9), "red")
TEXTS = {
    "parameters": 'a "cat" & <dog>, 霞 ß ホ \U0001f34e\r\n\tend\nSteps: 1',
    "oboro": '{"a": "<b> & \\"c\\" 霞 \\u0001 \U0001f34e"}',
}
KINDS = sorted(set(FORMATS.values()))


@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("names", [(), ("parameters",), ("oboro",), ("oboro", "parameters")])
def test_texts_come_back(format: str, names: tuple[str, ...]) -> None:
    texts = {name: TEXTS[name] for name in names}
    data = encode_picture(RED, texts, format)
    assert read_texts(data) == texts
    assert encode_picture(RED.copy(), texts, format) == data  # the same picture, the same file
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == format
        _, largest = ImageChops.difference(image.convert("RGB"), RED).getextrema()[0]
        assert largest <= 3


def test_characters_that_xml_has_not() -> None:
    read = read_texts(encode_picture(RED, {"oboro": '{"a": "\ufffe\x0b"}'}, "JPEG"))
    assert read == {"oboro": r'{"a": "\ufffe\u000b"}'}  # the same JSON


def test_jpeg_holds_long_prompts_and_says_when_it_does_not() -> None:
    long = {"parameters": "霞" * 20_000, "oboro": "霞" * 20_000}
    assert read_texts(encode_picture(RED, long, "JPEG")) == long
    with pytest.raises(ValueError, match=r"^The prompts are too long for a JPEG file .*write a PNG\.$"):
        encode_picture(RED, {"parameters": "霞" * 40_000}, "JPEG")
    with pytest.raises(ValueError, match=r"^The prompts are too long for a JPEG file .*write a PNG\.$"):
        encode_picture(RED, {"oboro": "霞" * 40_000}, "JPEG")


def with_packet(packet: bytes, format: str) -> bytes:
    file = io.BytesIO()
    RED.save(file, format, xmp=packet)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_packets_of_others(format: str) -> None:
    element = f"<x xmlns:rdf='{RDF}' xmlns:q='{NAMESPACE}'><rdf:Description {{}}>{{}}</rdf:Description></x>"
    as_attribute = element.format("q:oboro='{\"a\": 1}' other='2'", "<y>3</y>")
    assert read_texts(with_packet(as_attribute.encode(), format)) == {"oboro": '{"a": 1}'}
    swelling = "<!DOCTYPE x [<!ENTITY a '" + "b" * 1000 + "'>]>" + element.format("", "<q:oboro>&a;</q:oboro>")
    for packet in (b"no XML", b"<x>", element.format("", "").encode(), swelling.encode(), b"\xff\xfe<"):
        assert read_texts(with_packet(packet, format)) == {}


@pytest.mark.parametrize("comment", [b"", b"ASCII\0\0\0text", b"UNICODE", b"text", bytes(8)])
def test_comments_of_others(comment: bytes) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9286] = comment
    RED.save(file, "JPEG", exif=exif)
    assert read_texts(file.getvalue()) == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", encode_picture(RED, {})[:45], b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 "],
)
def test_files_that_are_no_pictures(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a picture that can be read( \(.*\))?; expected PNG, JPEG or WebP\.$"):
        read_texts(data)
