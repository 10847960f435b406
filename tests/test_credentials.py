"""Content credentials: signed with a certificate made on the fly, read back, and broken."""

import datetime
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from diffusion.credentials import MADE_BY_A_MODEL, MIME, Signer, read_seal
from diffusion.texts import encode_picture, read_texts

c2pa = pytest.importorskip("c2pa")
from cryptography import x509  # noqa: E402 (comes with c2pa)
from cryptography.hazmat.primitives import hashes  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

PICTURE = Image.radial_gradient("L").convert("RGB").resize((48, 48))
TEXTS = {"parameters": "a cat\nSteps: 1, Seed: 1, Size: 48x48", "oboro": '{"a": "霞"}'}
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Credentials:
    certificate: Path
    key: Path


def certificate(name: str, key: Key, issuer: str, issuer_key: Key, authority: bool) -> x509.Certificate:
    """As C2PA asks for: version 3, what it is for said, keys of subject and issuer named."""
    begin = datetime.datetime(2025, 1, 1)
    subject, signer = (
        x509.Name([x509.NameAttribute(kind, text) for kind in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)])
        for text in (name, issuer)
    )
    builder = x509.CertificateBuilder(signer, subject, key.public_key(), 1 + authority, begin)
    builder = builder.not_valid_after(begin + datetime.timedelta(days=36500))
    builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
    usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(authority_key, critical=False)
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def write(folder: Path, key: Key) -> Credentials:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = certificate("An Authority", authority_key, "An Authority", authority_key, True)
    own = certificate("A. Signer", key, "An Authority", authority_key, False)
    paths = Credentials(folder / "certificate.pem", folder / "key.pem")
    paths.certificate.write_bytes(own.public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM))
    paths.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return write(tmp_path_factory.mktemp("credentials"), ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize("format", MIME)
def test_signed_and_read_back(credentials: Credentials, format: str) -> None:
    plain = encode_picture(PICTURE, TEXTS, format)
    signed = Signer(credentials.certificate, credentials.key).sign(plain, format)
    assert read_texts(signed) == TEXTS
    with Image.open(io.BytesIO(plain)) as before, Image.open(io.BytesIO(signed)) as after:
        assert before.tobytes() == after.tobytes()
    assert len(signed) - len(plain) < 8000  # bytes: no thumbnail
    seal = read_seal(signed, format)
    assert seal is not None
    assert (seal.signer, seal.whole, seal.fault) == ("A. Signer", True, "")
    said = c2pa.Reader(MIME[format], io.BytesIO(signed)).json()
    (manifest,) = json.loads(said)["manifests"].values()
    (action,) = manifest["assertions"][0]["data"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", MADE_BY_A_MODEL)
    assert action["softwareAgent"]["name"] == "oboro"
    assert read_seal(plain, format) is None


def test_a_changed_byte_is_seen(credentials: Credentials) -> None:
    signed = Signer(credentials.certificate, credentials.key).sign(encode_picture(PICTURE, TEXTS), "PNG")
    begin = signed.index(b"IDAT")  # of the pixels; what is before holds the credentials, whose padding means nothing
    rng = random.Random(0)
    for at in rng.sample(range(begin, len(signed) - 12), 50):
        changed = bytearray(signed)
        changed[at] ^= 1 << rng.randrange(8)
        seal = read_seal(bytes(changed), "PNG")
        assert seal is not None
        assert not seal.whole
        assert seal.fault


@pytest.mark.parametrize("kind", ["P-384", "Ed25519", "RSA"])
def test_kinds_of_keys(tmp_path: Path, kind: str) -> None:
    key: Key = ed25519.Ed25519PrivateKey.generate()
    if kind != "Ed25519":
        key = ec.generate_private_key(ec.SECP384R1()) if kind == "P-384" else rsa.generate_private_key(65537, 2048)
    paths = write(tmp_path, key)
    seal = read_seal(Signer(paths.certificate, paths.key).sign(encode_picture(PICTURE, {}), "PNG"), "PNG")
    assert seal is not None
    assert seal.whole


def test_what_cannot_sign(credentials: Credentials, tmp_path: Path) -> None:
    other = write(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    for certificate_, key, said in (
        (credentials.certificate, nothing, "is not a private key in PEM"),
        (nothing, credentials.key, "cannot sign pictures"),
        (credentials.certificate, other.key, "cannot sign pictures"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{said}[^\n]*\.$"):
            Signer(certificate_, key)
