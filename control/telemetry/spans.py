"""What is traced: operations of the control process and their steps, by name and outcome alone.

No argument, no address and no target of an operation is an attribute. Nothing of a stream, a circuit or a packet is traced: a
span has a start and an end, and that is what a watcher of traffic looks for.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from control.wire import Refusal


class Span(Protocol):
    """As much of OpenTelemetry's span as is used here."""

    def set_attribute(self, key: str, value: str) -> None:
        """Name the outcome."""


Trace = Callable[[str], AbstractContextManager[None]]


@contextmanager
def untraced(_name: str) -> Iterator[None]:
    """Nobody asked for traces."""
    yield


def traced(start: Callable[[str], AbstractContextManager[Span]]) -> Trace:
    """Spans by `start`; the outcome is "ok", the code of a refusal, or "failure"."""

    @contextmanager
    def trace(name: str) -> Iterator[None]:
        with start(name) as span:
            try:
                yield
            except Refusal as error:
                span.set_attribute("nyx.outcome", error.code)
                raise
            except BaseException:
                span.set_attribute("nyx.outcome", "failure")
                raise
            span.set_attribute("nyx.outcome", "ok")

    return trace
