"""The error families: a rule we broke, a rule the peer broke, what the operator must mend, and our own bugs.

Kernels never raise; they return codes from `nyx.codes`. These exceptions belong to the Python around them.
"""


class NyxError(Exception):
    """Base of every error that Nyx raises on purpose."""


class LocalProtocolError(NyxError):
    """The caller asked for something that the protocol or the current state forbids."""


class RemoteProtocolError(NyxError):
    """The peer sent something that the protocol forbids; `code` is the wire error code to close with."""

    def __init__(self, message: str, code: int = 0x01) -> None:
        super().__init__(message)
        self.code = code


class ConfigError(NyxError):
    """Configuration, key or directory files that an operator must mend; `problems` are complete lines of text."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InternalError(NyxError):
    """A bug of ours: an invariant does not hold."""
