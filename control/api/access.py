"""Who may use the API by TCP: certificates and the token, as their files say now.

Files that change are read anew, at the next connection or call; what was good stays in force where the new is not, and the
operator is told so. A renewed certificate needs no restart, nor does a token that has become known.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate, load_pem_x509_certificates

from control.api.errors import KINDS, trailing
from nyx.config import ApiConfig
from nyx.errors import ConfigError
from nyx.files import read_private

TOKEN_LENGTH: Final = (16, 1024)  # bytes
_FILE_MAX: Final = 1 << 16

T = TypeVar("T")
Mark = tuple[tuple[int, int, int], ...]

_log: Final = logging.getLogger(__name__)


class Renewed(Generic[T]):
    """What is read from files, and again once they changed. `problem` says why what they say now is not in force."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Raises ConfigError."""
        self._paths = paths
        self._read = read
        self._mark = self._look()
        self._value = read()
        self.problem: str | None = None

    def _look(self) -> Mark:
        """What tells one state of the files from another."""
        return tuple(_state(path) for path in self._paths)

    def changed(self) -> bool:
        """Read them if they changed; whether another value is in force."""
        mark = self._look()
        if mark == self._mark:
            return False
        self._mark = mark
        try:
            self._value = self._read()
        except ConfigError as error:
            self.problem = f"{error}; what was read before stays in force"
            _log.warning("the API by TCP: %s", self.problem)
            return False
        self.problem = None
        return True

    def get(self) -> T:
        """The value in force."""
        self.changed()
        return self._value


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)


# ---------------------------------------------------------------- the token


class TokenCheck(grpc.aio.ServerInterceptor):
    """Lets a call through whose metadata has the token."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self.token = Renewed([path], lambda: _token(path))
        self._refusal: Any = grpc.unary_unary_rpc_method_handler(_unauthenticated)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Look at every call, also of methods that there are not."""
        expected = b"Bearer " + self.token.get()
        for key, value in handler_call_details.invocation_metadata or ():
            given = value.encode() if isinstance(value, str) else value
            if key == "authorization" and hmac.compare_digest(given, expected):
                return await continuation(handler_call_details)
        return self._refusal


async def _unauthenticated(_request: Any, context: Any) -> None:
    code = "unauthenticated"
    await context.abort(KINDS[code].status, "the token is missing or wrong", trailing(code))


def _token(path: Path) -> bytes:
    token = read_private(path, _FILE_MAX).strip()
    least, most = TOKEN_LENGTH
    if not least <= len(token) <= most or not token.isascii() or not token.decode("latin-1").isprintable() or b" " in token:
        raise ConfigError([f"{path}: a token has {least} to {most} printable characters and no space: openssl rand -hex 32"])
    return token


# ---------------------------------------------------------------- certificates


class Certificates:
    """The server's certificates, renewed for each connection that comes after their files changed."""

    def __init__(self, config: ApiConfig) -> None:
        """Raises ConfigError."""
        paths = [path for path in (config.tls_cert, config.tls_key, config.client_ca) if path]
        self.files = Renewed(paths, lambda: _certificates(config))
        self._mutual = config.client_ca is not None

    def credentials(self) -> grpc.ServerCredentials:
        """What a secure port is opened with."""

        def renewed() -> Any:
            """Another configuration, or None: the one before goes on."""
            return self.files.get() if self.files.changed() else None

        return grpc.dynamic_ssl_server_credentials(self.files.get(), renewed, require_client_authentication=self._mutual)


def _certificates(config: ApiConfig) -> grpc.ServerCertificateConfiguration:
    assert config.tls_cert is not None
    assert config.tls_key is not None
    key, chain = read_private(config.tls_key, _FILE_MAX), _read(config.tls_cert)
    _check(config.tls_cert, chain, config.tls_key, key)
    roots = _read(config.client_ca) if config.client_ca else None
    if roots is not None:
        assert config.client_ca is not None
        _readable(config.client_ca, roots)
    return grpc.ssl_server_certificate_configuration([(key, chain)], roots)


def _check(cert_path: Path, chain: bytes, key_path: Path, key: bytes) -> None:
    """A chain and a key that belong together: one of a pair that is being replaced must not be taken alone."""
    _readable(cert_path, chain)
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise ConfigError([f"{key_path}: no private key in PEM without a passphrase"]) from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if load_pem_x509_certificate(chain).public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
        raise ConfigError([f"{key_path}: not the key of the certificate in {cert_path}"])


def _readable(path: Path, data: bytes) -> None:
    try:
        load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError([f"{path}: no certificate in PEM"]) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
