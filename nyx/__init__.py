"""Nyx protocol library: pure state machines and array functions, without sockets, processes or a clock of its own.

The rooms, in the order in which they may import each other: wire, crypto, link, onion, stream, path; the SDK stands apart.
"""

__version__ = "0.1.0"
