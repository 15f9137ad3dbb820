"""The in-session key exchange: from one generation of a link's keys to the next, with post-quantum forward secrecy.

Place on a packet's way: link frames CRYPTO and NEW_CID of a channel end here; the result is the next `LinkSecrets`. The
link's initiator begins it, at once after the handshake and again every 10 minutes or 1 GiB. Source: docs/protocol.md,
"In-session key exchange".

    initiator                                        responder
    start: HELLO*, 4 NEW_CID; KEM_EK      ->         has all of it: derives, answers in one packet
    has all of it: derives, sends         <-         KEM_CT, 4 NEW_CID, HELLO*            (* under generation 0 alone)
    everything, a PING first, under g+1   ->         first packet that opens under g+1: sends under g+1 too

The order of frames and packets does not matter. Everything travels under generation g and prepares g+1, so an exchange
cannot be confused with the next one. A frame that breaks a rule raises RemoteProtocolError with the code to close with.
"""

from collections.abc import Sequence
from typing import Final

import cbor2

from nyx.crypto.kem import KEM_SEED_SIZE, Entropy, KemKey, check_ek, encapsulate
from nyx.errors import RemoteProtocolError
from nyx.link.channel import Channel
from nyx.link.frames import Crypto, CryptoMessage, Frame, NewCid
from nyx.link.handshake import VERSION, LinkSecrets
from nyx.wire.codes import ErrorCode
from nyx.wire.geometry import SESSIONS_PER_LINK

CAPABILITIES_MAX: Final = 32
CAPABILITY_REQUIRED: Final = 1
_VERSION_SIZE: Final = 2
_KEYS: Final = {"id": int, "flags": int, "data": bytes}


def encode_hello(capabilities: Sequence[dict[str, object]] = ()) -> bytes:
    """HELLO's data: proto_version u16, then the capabilities, CBOR in its deterministic form."""
    return VERSION.to_bytes(_VERSION_SIZE, "big") + cbor2.dumps(list(capabilities), canonical=True)


def check_hello(data: bytes) -> None:
    """Raises RemoteProtocolError for another version, for a required capability (this version has none), for bad CBOR."""
    if data[:_VERSION_SIZE] != VERSION.to_bytes(_VERSION_SIZE, "big"):
        raise RemoteProtocolError("HELLO names another version than the handshake", ErrorCode.VERSION_MISMATCH)
    encoded = data[_VERSION_SIZE:]
    try:
        found = cbor2.loads(encoded)
        canonical = cbor2.dumps(found, canonical=True)
    except (cbor2.CBORError, ValueError, TypeError, EOFError, RecursionError, OverflowError):
        raise RemoteProtocolError("HELLO's capabilities are not CBOR") from None
    if canonical != encoded or not isinstance(found, list) or len(found) > CAPABILITIES_MAX:
        raise RemoteProtocolError("HELLO's capabilities are not a short list in deterministic CBOR")
    for capability in found:
        _check_capability(capability)


def _check_capability(capability: object) -> None:
    if not isinstance(capability, dict) or {k: type(v) for k, v in capability.items()} != _KEYS:
        raise RemoteProtocolError("a capability is not {id, flags, data}")
    if not (0 <= capability["id"] < 1 << 32 and 0 <= capability["flags"] < 1 << 8):
        raise RemoteProtocolError("a capability's id or flags are out of range")
    if capability["flags"] & CAPABILITY_REQUIRED:
        raise RemoteProtocolError("a required capability is not supported", ErrorCode.UNSUPPORTED_CAP)


class LinkUpgrade:
    """One exchange, either role. `start` it (the responder's does nothing), give it frames, take `secrets` once they are there.

    `local_cids` are ours in the next generation; the worker chooses and registers them before. `channel` is one of the present
    generation, any session; it carries what this sends.
    """

    def __init__(self, secrets: LinkSecrets, channel: Channel, local_cids: Sequence[bytes], entropy: Entropy) -> None:
        self.secrets: LinkSecrets | None = None
        self.confirmed = False
        self._from = secrets
        self._channel = channel
        self._local_cids = tuple(bytes(cid) for cid in local_cids)
        self._peer_cids: dict[int, bytes] = {}
        self._messages: dict[int, bytes] = {}
        self._key = KemKey(entropy(KEM_SEED_SIZE)) if secrets.initiator else None

    def __repr__(self) -> str:
        return f"LinkUpgrade(generation={self._from.generation + 1}, done={self.secrets is not None})"

    @property
    def may_send(self) -> bool:
        """Whether we may send under the new generation: the initiator once it has the keys, the responder once told so."""
        return self.secrets is not None and (self._from.initiator or self.confirmed)

    def start(self) -> bool:
        """Send what the initiator sends first. False when the channel's queue is full: the link is beyond help."""
        if self._key is None:
            return True
        sent = self._channel.send_frames([*self._hello(), *self._new_cids()])
        return sent >= 0 and self._channel.send_frames([Crypto(CryptoMessage.KEM_EK, self._key.public)]) >= 0

    def confirm(self) -> None:
        """Tell the responder's side that a packet opened under the new generation."""
        self.confirmed = self.secrets is not None

    def receive(self, frame: Frame) -> LinkSecrets | None:
        """Take a frame; CRYPTO and NEW_CID matter here, others are ignored. Returns the secrets at the moment they exist."""
        if isinstance(frame, NewCid):
            self._on_cid(frame)
        elif isinstance(frame, Crypto):
            self._on_message(frame)
        else:
            return None
        if self.secrets is not None or not self._complete():
            return None
        self.secrets = self._derive()
        return self.secrets

    def _hello(self) -> list[Frame]:
        return [Crypto(CryptoMessage.HELLO, encode_hello())] if self._from.generation == 0 else []

    def _new_cids(self) -> list[Frame]:
        return [NewCid(session, cid) for session, cid in enumerate(self._local_cids)]

    def _on_cid(self, frame: NewCid) -> None:
        known = self._peer_cids.setdefault(frame.session, frame.cid)
        if known != frame.cid or list(self._peer_cids.values()).count(frame.cid) != 1:
            raise RemoteProtocolError("NEW_CID contradicts an earlier one")

    def _on_message(self, frame: Crypto) -> None:
        wrong = CryptoMessage.KEM_EK if self._from.initiator else CryptoMessage.KEM_CT
        if frame.message == wrong:
            raise RemoteProtocolError("a key exchange message of the wrong role")
        if self._messages.get(frame.message, frame.data) != frame.data:
            raise RemoteProtocolError("a key exchange message was repeated with other data", ErrorCode.CRYPTO_FAIL)
        if frame.message == CryptoMessage.HELLO:
            check_hello(frame.data)
        elif frame.message == CryptoMessage.KEM_EK:
            check_ek(frame.data)
        self._messages[frame.message] = frame.data

    def _complete(self) -> bool:
        needed = {CryptoMessage.KEM_CT if self._from.initiator else CryptoMessage.KEM_EK}
        if self._from.generation == 0:
            needed.add(CryptoMessage.HELLO)
        return needed <= self._messages.keys() and len(self._peer_cids) == SESSIONS_PER_LINK

    def _derive(self) -> LinkSecrets:
        if self._key is not None:
            secret = self._key.decapsulate(self._messages[CryptoMessage.KEM_CT])
            self._key = None
        else:
            secret, ciphertext = encapsulate(self._messages[CryptoMessage.KEM_EK])
            answer = [Crypto(CryptoMessage.KEM_CT, ciphertext), *self._new_cids(), *self._hello()]
            if self._channel.send_frames(answer) < 0:
                raise RemoteProtocolError("the control channel is full", ErrorCode.INTERNAL_ERROR)
        peer_cids = [self._peer_cids[session] for session in range(SESSIONS_PER_LINK)]
        return self._from.upgrade(secret, self._local_cids, peer_cids)
