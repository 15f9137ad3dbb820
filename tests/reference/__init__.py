"""The independent twin: the protocol's cryptography written a second time, slowly, over bytes.

It shares no code with `nyx`: AEGIS comes from pyaegis, ChaCha20 and Poly1305 from `cryptography`, SipHash, HChaCha20 and
everything above are plain Python, written from docs/protocol.md.
"""
