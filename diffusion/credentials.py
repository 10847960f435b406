"""Signed content credentials (C2PA): a picture's file that says, signed, that a model made it.

Whoever changes a byte of the file breaks the signature. Everything is done on this machine: no authority of time is
asked, no list of trusted certificates is fetched, and no thumbnail is stored. Needs the extra `c2pa`.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion.metadata import VERSION
from diffusion.texts import encode_picture

MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_trust": False, "ocsp_fetch": False, "remote_manifest_fetch": False},
}
MARK = b"jumdc2pa"  # how the box begins that holds credentials, in whatever file
MISSING = "pip install 'oboro[c2pa]'"


@dataclass(frozen=True)
class Seal:
    """What a file's credentials say, and whether they hold."""

    signer: str  # of the certificate; nobody has looked whether it is to be trusted
    whole: bool  # not a byte was changed since it was signed
    fault: str  # what is wrong where it is not


class Signer:
    """Signs files with a certificate and its private key, both PEM; the certificate's chain may follow it.

    Raises ValueError, in one sentence, where they are not fit for it.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._chain, self._key = certificate.read_bytes(), key.read_bytes()
        self._algorithm = _algorithm(key, self._key)
        try:
            self.sign(encode_picture(Image.new("RGB", (1, 1)), {}), "PNG")
        except ValueError as error:
            raise ValueError(f"{certificate} and {key} cannot sign pictures: {error}") from None

    def sign(self, file: bytes, format: str) -> bytes:
        """The file with credentials in it. They hold a random name: signing twice makes two files."""
        c2pa = _c2pa()
        agent = {"name": "oboro", "version": VERSION}
        created = {"action": "c2pa.created", "softwareAgent": agent, "digitalSourceType": MADE_BY_A_MODEL}
        actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
        signed = io.BytesIO()
        try:
            builder = c2pa.Builder(
                {"claim_generator_info": [agent], "assertions": [actions]}, context=c2pa.Context.from_dict(SETTINGS)
            )
            signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(self._algorithm, self._chain, self._key, None))
            builder.sign(signer, MIME[format], io.BytesIO(file), signed)
        except c2pa.C2paError as error:
            raise ValueError(f"{_line(error)}.") from None
        return signed.getvalue()


def read_seal(file: bytes, format: str) -> Seal | None:
    """The credentials of a file, or None where it has none.

    Raises ValueError where they cannot be looked at.
    """
    if MARK not in file:
        return None
    c2pa = _c2pa()
    try:
        reader = c2pa.Reader(MIME[format], io.BytesIO(file), context=c2pa.Context.from_dict(SETTINGS))
        said = json.loads(reader.json())
    except c2pa.C2paError as error:
        return None if "ManifestNotFound" in str(error) else Seal("", False, _line(error))
    signature = said["manifests"][said["active_manifest"]].get("signature_info", {})
    faults = [status["code"] for status in said.get("validation_status", ())]
    whole = said["validation_state"] in ("Valid", "Trusted")
    return Seal(signature.get("common_name") or signature.get("issuer") or "", whole, ", ".join(faults) * (not whole))


def _algorithm(path: Path, key: bytes) -> str:
    """The algorithm of C2PA's for a private key."""
    _c2pa()  # which brings cryptography
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key, password=None)
    except (TypeError, ValueError):
        raise ValueError(f"{path} is not a private key in PEM without a password.") from None
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.key_size in (256, 384, 521):
        return {256: "es256", 384: "es384", 521: "es512"}[private.key_size]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    raise ValueError(f"{path} is a key of a kind that C2PA does not take; expected P-256, P-384, Ed25519 or RSA.")


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError:
        raise ValueError(f"Content credentials need the library c2pa: {MISSING}.") from None
    return c2pa


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
