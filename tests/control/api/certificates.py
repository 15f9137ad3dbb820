"""Certificates for tests: an authority and what it signs, made on the spot."""

import datetime as dt
import ipaddress
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Identity(NamedTuple):
    """A certificate and its key, PEM; and what is needed to sign others."""

    chain: bytes
    key: bytes
    certificate: x509.Certificate
    private: ec.EllipticCurvePrivateKey

    def issue(self, name: str) -> "Identity":
        """Sign one for a name."""
        return _made(name, self)


def authority(name: str) -> Identity:
    """Make an authority."""
    return _made(name, None)


def _made(name: str, issuer: Identity | None) -> Identity:
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(names, critical=False)
    )
    certificate = builder.sign(issuer.private if issuer else private, hashes.SHA256())
    key = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(certificate.public_bytes(serialization.Encoding.PEM), key, certificate, private)
