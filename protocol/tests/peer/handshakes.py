"""Handshakes and sealed records as docs/protocol.md describes them, on the `noiseprotocol` package and the primitives
of the `cryptography` package. Nothing of Culver's own code is in it: that is what it is for.

A handshake is `flight`, the bytes to open with; `finish(answer)`, which takes the message in HANDSHAKE and returns what
is still to be sent; and then `established`. Randomness is an argument where a vector wants the same bytes again.
"""

import base64
import hashlib
import os
import typing
import warnings

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from noise.connection import Keypair, NoiseConnection
from noise.exceptions import NoiseInvalidMessage

NONE, IK, XX, TICKET, TICKET_FORWARD_SECRET = range(5)
KEY_LEN = 32
TAG_LEN = 16
CERTIFICATE_LEN = 115

# `noiseprotocol` warns of ephemeral keys that are given, which only vectors do.
warnings.filterwarnings("ignore", message="One of ephemeral keypairs is already set")


class HandshakeError(Exception):
    """A handshake came to nothing."""


class CertificateError(HandshakeError):
    """The server's certificate is not good."""


class Forged(Exception):
    """A record does not open."""


class Suite(typing.NamedTuple):
    """A cipher suite of the preamble."""

    number: int
    name: str
    noise_name: str
    byte_order: str
    aead: type

    def nonce(self, number):
        """The twelve bytes that stand for the nonce of this number."""
        return bytes(4) + number.to_bytes(8, self.byte_order)

    def seal(self, key, number, associated, plain):
        """What is sealed, and its tag."""
        return self.aead(key).encrypt(self.nonce(number), plain, associated)

    def open(self, key, number, associated, sealed):
        """What was sealed."""
        try:
            return self.aead(key).decrypt(self.nonce(number), sealed, associated)
        except InvalidTag as error:
            raise Forged("it does not open") from error

    def next_key(self, key):
        """Noise's REKEY(k)."""
        return self.seal(key, 2**64 - 1, b"", bytes(KEY_LEN))[:KEY_LEN]


SUITES = (
    Suite(1, "chacha20", "ChaChaPoly", "little", ChaCha20Poly1305),
    Suite(2, "aes256", "AESGCM", "big", AESGCM),
)


def sha256(*parts):
    """SHA-256 of the parts, one behind the other."""
    return hashlib.sha256(b"".join(parts)).digest()


def hkdf(salt, secret, purpose, length=KEY_LEN):
    """HKDF of RFC 5869 with SHA-256."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=purpose).derive(secret)


def public_key(secret):
    """The public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def fingerprint(public):
    """What the server knows a device's key by."""
    return sha256(public)[:16]


def thumbprint(public):
    """What a token's `cnf.jkt` names a device's key by (RFC 7638)."""
    x = base64url(public)
    return base64url(sha256(b'{"crv":"X25519","kty":"OKP","x":"' + x.encode() + b'"}'))


def base64url(data):
    """Without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def preamble(handshake, suite, server_key=0):
    """The eight bytes that open a connection."""
    return b"CV" + bytes([1, 1, handshake, suite.number]) + server_key.to_bytes(2, "big")


def framed(data):
    """A handshake message of the client's, with its length."""
    return len(data).to_bytes(2, "big") + data


def is_signed(public, message, signature):
    """Whether the holder of this Ed25519 key has signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


class Certificate(typing.NamedTuple):
    """What a certificate says."""

    key_id: int
    public: bytes
    not_before_ms: int
    not_after_ms: int

    def signed_bytes(self):
        """What the root signs."""
        times = self.not_before_ms.to_bytes(8, "big") + self.not_after_ms.to_bytes(8, "big")
        return b"culver server key" + bytes([1]) + self.key_id.to_bytes(2, "big") + self.public + times

    @classmethod
    def check(cls, data, roots, now_ms, shown):
        """Reads a certificate, which any of the roots may have signed; `shown` is the key that the handshake showed."""
        if len(data) != CERTIFICATE_LEN or data[0] != 1:
            raise CertificateError(f"{len(data)} bytes, which are no certificate")
        body, signature = data[:51], data[51:]
        if not any(is_signed(root, b"culver server key" + body, signature) for root in roots):
            raise CertificateError("no trusted root has signed it")
        numbers = (body[1:3], body[35:43], body[43:51])
        key_id, not_before_ms, not_after_ms = (int.from_bytes(number, "big") for number in numbers)
        if not not_before_ms <= now_ms < not_after_ms:
            raise CertificateError(f"good from {not_before_ms} to {not_after_ms}, and now is {now_ms}")
        if body[3:35] != shown:
            raise CertificateError("it is about another key than the one the handshake showed")
        return cls(key_id, body[3:35], not_before_ms, not_after_ms)


class Keys(typing.NamedTuple):
    """What a handshake leaves, in the client's and server's names."""

    client: bytes
    server: bytes
    hash: bytes
    next_secret: bytes


class NoiseRecords:
    """Records sealed by the Noise library's own transport."""

    def __init__(self, connection):
        self._connection = connection

    def seal(self, body):
        """The sealed body of the next record."""
        return bytes(self._connection.encrypt(bytes(body)))

    def open(self, sealed):
        """The body of the other's next record."""
        try:
            return bytes(self._connection.decrypt(bytes(sealed)))
        except NoiseInvalidMessage as error:
            raise Forged("it does not open") from error

    def change_sending(self):
        """After a REKEY of one's own."""
        self._connection.rekey_outbound_cipher()

    def change_receiving(self):
        """After a REKEY of the other's."""
        self._connection.rekey_inbound_cipher()


class PlainRecords:
    """Records sealed with the primitives alone."""

    def __init__(self, suite, sending, receiving):
        self._suite = suite
        self._sending, self._receiving = sending, receiving
        self._sent = self._received = 0

    def seal(self, body):
        """The sealed body of the next record."""
        sealed = self._suite.seal(self._sending, self._sent, b"", bytes(body))
        self._sent += 1
        return sealed

    def open(self, sealed):
        """The body of the other's next record."""
        body = self._suite.open(self._receiving, self._received, b"", bytes(sealed))
        self._received += 1
        return body

    def change_sending(self):
        """After a REKEY of one's own."""
        self._sending = self._suite.next_key(self._sending)

    def change_receiving(self):
        """After a REKEY of the other's."""
        self._receiving = self._suite.next_key(self._receiving)


def noise(name, prologue, is_client, **keys):
    """One side of a Noise handshake: `own`, `other`, `ephemeral` and `shared` are its keys."""
    connection = NoiseConnection.from_name(name.encode())
    if is_client:
        connection.set_as_initiator()
    else:
        connection.set_as_responder()
    connection.set_prologue(prologue)
    if keys.get("own"):
        connection.set_keypair_from_private_bytes(Keypair.STATIC, keys["own"])
    if keys.get("other"):
        connection.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, keys["other"])
    if keys.get("ephemeral"):
        connection.set_keypair_from_private_bytes(Keypair.EPHEMERAL, keys["ephemeral"])
    if keys.get("shared"):
        connection.set_psks(psk=keys["shared"])
    connection.start_handshake()
    return connection


def noise_keys(connection, is_client):
    """What a Noise handshake leaves. Before any REKEY."""
    ours = connection.noise_protocol.cipher_state_encrypt.k
    theirs = connection.noise_protocol.cipher_state_decrypt.k
    first, second = (ours, theirs) if is_client else (theirs, ours)
    handshake_hash = connection.get_handshake_hash()
    return Keys(first, second, handshake_hash, hkdf(handshake_hash, first + second, b"culver resumption"))


class Handshake:
    """What the four have in common."""

    kind = NONE

    def __init__(self, suite, server_key=0):
        self.suite = suite
        self.preamble = preamble(self.kind, suite, server_key)
        self.flight = b""
        self.keys = self.records = self.certificate = None

    def finish(self, answer):
        """Takes the server's message, and returns what has to be sent before any record."""
        try:
            last = self._finish(bytes(answer))
        except (InvalidTag, NoiseInvalidMessage, ValueError, IndexError) as error:
            raise HandshakeError(f"the server's message of {len(answer)} bytes does not open") from error
        return framed(last) if last else b""

    def _finish(self, answer):
        raise NotImplementedError

    def _agreed(self, connection):
        self.keys = noise_keys(connection, is_client=True)
        self.records = NoiseRecords(connection)


class NoiseIk(Handshake):
    """Type 1: the client knows the server's key."""

    kind = IK

    def __init__(self, suite, login, own, server, ephemeral=None):
        """`server` is the number of the server's key, and the key."""
        super().__init__(suite, server[0])
        name = f"Noise_IK_25519_{suite.noise_name}_SHA256"
        self._noise = noise(name, self.preamble, True, own=own, other=server[1], ephemeral=ephemeral)
        self.flight = self.preamble + framed(bytes(self._noise.write_message(login)))

    def _finish(self, answer):
        if self._noise.read_message(answer):
            raise ValueError("a payload, where there should be none")
        self._agreed(self._noise)


class NoiseXx(Handshake):
    """Type 2: the client learns the server's key."""

    kind = XX

    def __init__(self, suite, login, own, roots, now_ms, ephemeral=None):
        super().__init__(suite)
        self._login, self._roots, self._now_ms = login, roots, now_ms
        name = f"Noise_XX_25519_{suite.noise_name}_SHA256"
        self._noise = noise(name, self.preamble, True, own=own, ephemeral=ephemeral)
        self.flight = self.preamble + framed(bytes(self._noise.write_message(b"")))

    def _finish(self, answer):
        payload = bytes(self._noise.read_message(answer))
        shown = self._noise.noise_protocol.handshake_state.rs.public_bytes
        self.certificate = Certificate.check(payload, self._roots, self._now_ms, shown)
        last = bytes(self._noise.write_message(self._login))
        self._agreed(self._noise)
        return last


class ForwardSecretTicket(Handshake):
    """Type 4: a ticket, and a Diffie-Hellman."""

    kind = TICKET_FORWARD_SECRET

    def __init__(self, suite, login, ticket, secret, ephemeral=None):
        super().__init__(suite)
        name = f"Noise_NNpsk0_25519_{suite.noise_name}_SHA256"
        self._noise = noise(name, self.preamble + ticket, True, shared=secret, ephemeral=ephemeral)
        message = bytes(self._noise.write_message(login))
        self.flight = self.preamble + framed(bytes([len(ticket)]) + ticket + message)

    def _finish(self, answer):
        if self._noise.read_message(answer):
            raise ValueError("a payload, where there should be none")
        self._agreed(self._noise)


class SymmetricTicket(Handshake):
    """Type 3: a ticket, and no Diffie-Hellman."""

    kind = TICKET

    def __init__(self, suite, login, ticket, secret, random=None):
        super().__init__(suite)
        random = random or os.urandom(KEY_LEN)
        self.name = f"Culver_resume_{suite.noise_name}"
        start = bytes([len(ticket)]) + ticket + random
        self.hello = sha256(self.name.encode(), self.preamble, start)
        self.early_key = hkdf(self.hello, secret, b"culver early")
        self._secret = secret
        self._sealed = suite.seal(self.early_key, 0, self.hello, login)
        self.flight = self.preamble + framed(start + self._sealed)

    def _finish(self, answer):
        if len(answer) != KEY_LEN:
            raise ValueError("32 bytes are due")
        final = sha256(self.hello, sha256(self._sealed), answer)
        derived = hkdf(final, self._secret, b"culver keys", 3 * KEY_LEN)
        client, server, next_secret = (derived[start : start + KEY_LEN] for start in (0, KEY_LEN, 2 * KEY_LEN))
        self.keys = Keys(client, server, final, next_secret)
        self.records = PlainRecords(self.suite, client, server)
