"""Pictures with texts about them => PNG, JPEG and WebP files, and back.

PNG holds texts by name. In JPEG and WebP `parameters` is EXIF's UserComment, where AUTOMATIC1111's web UI puts it
and other programs look for it; every other text, JSON, is a property in an XMP packet, which editors keep and
galleries pass over.
"""

import io
import re
import struct
import warnings
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from clip.pictures import DAMAGE, FORMATS, PIXEL_LIMIT

QUALITY = 95  # of JPEG and WebP
COMMENT = "parameters"  # the text that is EXIF's UserComment
CHARSET = b"UNICODE\x00"  # EXIF 2.3, table 9; in big-endian UTF-16, which is what readers take it for
NAMESPACE = "https://ns.oboro.invalid/1.0/"  # a name, not an address
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}"><rdf:Description rdf:about="" xmlns:o="{namespace}">\
{properties}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""
# What no XML can hold. In JSON it stands within a string, where an escape is the same.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def encode_picture(
    image: Image.Image, texts: Mapping[str, str], format: str = "PNG", quality: int = QUALITY
) -> bytes:
    """The picture as a file of a format in FORMATS, with these texts by name. The same ones make the same bytes.

    `quality` is that of JPEG and WebP, 0 to 100.

    Raises ValueError where the texts are longer than a JPEG can hold.
    """
    file = io.BytesIO()
    if format == "PNG":
        info = PngInfo()
        for name, text in texts.items():
            info.add_text(name, text)  # beyond Latin-1 it is stored as UTF-8
        image.save(file, "PNG", pnginfo=info)
        return file.getvalue()
    exif = _exif(CHARSET + texts[COMMENT].encode("utf-16-be")) if COMMENT in texts else b""
    try:
        image.save(file, format, quality=quality, subsampling=0, exif=exif, xmp=_packet(texts))
    except ValueError as error:  # a segment of JPEG holds 64 KiB
        raise ValueError(f"The prompts are too long for a {format} file ({error}); write a PNG.") from None
    return file.getvalue()


def read_texts(data: bytes) -> dict[str, str]:
    """The texts of a picture's file, by name. Raises ValueError for a file that is none.

    Texts that are not as `encode_picture` writes them are left out, for other programs write in these places, too.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of bombs and of broken metadata
            with Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values()))) as image:
                if image.width * image.height > PIXEL_LIMIT:
                    raise ValueError(f"it claims {image.width}x{image.height} pixels")
                if image.format == "PNG":
                    image.load()  # texts may come after the pixels
                    return {str(name): str(text) for name, text in image.info.items() if isinstance(text, str)}
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
                texts = _properties(image.info.get("xmp", b""))
    except UnidentifiedImageError:  # it would say where in memory the file was
        raise ValueError("This is not a picture that can be read; expected PNG, JPEG or WebP.") from None
    except DAMAGE as error:
        raise ValueError(f"This is not a picture that can be read ({error}); expected PNG, JPEG or WebP.") from None
    if isinstance(comment, bytes) and comment.startswith(CHARSET):
        texts[COMMENT] = comment.removeprefix(CHARSET).decode("utf-16-be", "replace")
    return texts


def _exif(comment: bytes) -> bytes:
    """EXIF with a UserComment alone, of type UNDEFINED: Pillow would write BYTE, which some cannot read."""
    exif, user_comment = ExifTags.IFD.Exif, ExifTags.Base.UserComment
    first = struct.pack(">4sI H HHII I", b"MM\x00*", 8, 1, exif, 4, 1, 26, 0)  # one entry: where the second lies
    second = struct.pack(">H HHII I", 1, user_comment, 7, len(comment), 44, 0)
    return b"Exif\x00\x00" + first + second + comment


def _packet(texts: Mapping[str, str]) -> bytes:
    properties = ""
    for name in sorted(texts.keys() - {COMMENT}):
        text = FORBIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", texts[name])
        properties += f"<o:{name}>{escape(text)}</o:{name}>"
    return XMP.format(rdf=RDF, namespace=NAMESPACE, properties=properties).encode() if properties else b""


def _properties(packet: bytes) -> dict[str, str]:
    """Ours in an XMP packet, as elements or, where an editor wrote it anew, as attributes."""
    if b"<!" in packet:  # entities can be made to swell; no packet needs any
        return {}
    try:
        root = ElementTree.fromstring(packet)
    except ElementTree.ParseError:
        return {}
    found = {element.tag: element.text or "" for element in root.iter()}
    for element in root.iter(f"{{{RDF}}}Description"):
        found |= element.attrib
    mark = f"{{{NAMESPACE}}}"
    return {name.removeprefix(mark): text for name, text in found.items() if name.startswith(mark)}
