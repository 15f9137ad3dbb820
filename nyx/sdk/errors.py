"""What can go wrong for an application: one family under NyxError, SdkError its base; each is an ordinary OSError too.

| error            | means                                              | also a                 |
| ---------------- | -------------------------------------------------- | ---------------------- |
| UnreachableError | no daemon answers on the socket                    | ConnectionError        |
| NotReadyError    | the daemon has no circuit, or no room for a stream | ConnectionError        |
| RefusedError     | the stream was refused; `outcome` says why         | ConnectionRefusedError |
| ResetError       | an open stream broke; `outcome` says why           | ConnectionResetError   |
| StreamLostError  | the daemon that kept the stream is gone            | ConnectionResetError   |
| TimedOutError    | nothing came within the caller's time              | TimeoutError           |
"""

from nyx.errors import NyxError
from nyx.wire.sdk import Outcome


class SdkError(NyxError):
    """Base of every error that nyx.sdk raises on purpose."""


class UnreachableError(SdkError, ConnectionError):
    """No daemon answers on the socket, or not one that speaks this version."""


class NotReadyError(SdkError, ConnectionError):
    """The daemon runs and cannot carry a stream yet."""


class RefusedError(SdkError, ConnectionRefusedError):
    """The stream was refused."""

    def __init__(self, target: str, outcome: Outcome) -> None:
        super().__init__(f"{target}: {outcome.text}")
        self.outcome = outcome


class ResetError(SdkError, ConnectionResetError):
    """The stream broke after it was open: what was written last may not have arrived."""

    def __init__(self, target: str, outcome: Outcome) -> None:
        super().__init__(f"{target}: {outcome.text}")
        self.outcome = outcome


class StreamLostError(SdkError, ConnectionResetError):
    """The daemon that kept the stream was stopped or started again: open another one."""


class TimedOutError(SdkError, TimeoutError):
    """Nothing happened within the time that the caller gave."""
