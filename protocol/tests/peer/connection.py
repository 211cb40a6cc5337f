"""One connection to a server, sealed: blocking, and patient for a bounded time."""

import collections
import contextlib
import socket

import schema
from handshakes import Forged, framed

WAIT_S = 15

READY, WELCOME, PING, PONG, GOAWAY, ERROR, REKEY = range(0x01, 0x08)
HANDSHAKE = 0x09
SEND, SEND_RESULT, DELIVER, ACK, RECEIPT, SYNC_START, SYNC_DONE, GAP = range(0x10, 0x18)
RPC, RPC_RESULT = 0x30, 0x31

NAMES = {
    READY: "Ready",
    WELCOME: "Welcome",
    PING: "Ping",
    PONG: "Pong",
    GOAWAY: "Goaway",
    ERROR: "Error",
    SEND: "Send",
    SEND_RESULT: "SendResult",
    DELIVER: "Deliver",
    ACK: "Ack",
    RECEIPT: "Receipt",
    SYNC_START: "SyncStart",
    SYNC_DONE: "SyncDone",
    GAP: "Gap",
    RPC: "Rpc",
    RPC_RESULT: "RpcResult",
}


class Ended(Exception):
    """The connection is at its end."""


class Refused(Exception):
    """The server said ERROR."""

    def __init__(self, error, is_sealed):
        how = "sealed" if is_sealed else "in clear"
        super().__init__(f"error {error.code} {how}: {error.detail or 'no detail'}")
        self.code, self.is_sealed, self.retry_s = error.code, is_sealed, error.retry_after_ms / 1000


class Wire:
    """Bytes and lengths, nothing sealed."""

    def __init__(self, target):
        self._socket = socket.create_connection(target, timeout=WAIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, data):
        """Writes everything."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Ended(f"the connection ended while writing: {error}") from error

    def read_body(self):
        """What follows the next length."""
        body = self._read(int.from_bytes(self._read(2), "big"))
        if len(body) < 2:
            raise ValueError(f"a record of {len(body)} bytes")
        return body

    def _read(self, count):
        data = b""
        while len(data) < count:
            try:
                more = self._socket.recv(count - len(data))
            except TimeoutError:
                raise ValueError(f"nothing came within {WAIT_S} s") from None
            except OSError as error:
                raise Ended(f"the connection ended: {error}") from error
            if not more:
                raise Ended("the server closed the connection")
            data += more
        return data

    def read_to_the_end(self):
        """What follows each length, until the server ends the connection."""
        bodies = []
        with contextlib.suppress(Ended):
            while True:
                bodies.append(self.read_body())
        return bodies

    def close(self):
        """Ends it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Connection:
    """A connection on which both sides have keys."""

    def __init__(self, target, handshake):
        """Opens one, and plays the handshake through. An ERROR in clear is `Refused`."""
        self.handshake = handshake
        # The server's message, what was sent after it, and every sealed record that was sent.
        self.answer, self.last, self.sealed = b"", b"", []
        self.rekeys = 0
        self._has_opened = False
        self._waiting = collections.deque()
        self._wire = Wire(target)
        self._records = None
        try:
            self._open()
        except Exception:
            self._wire.close()
            raise

    def _open(self):
        self._wire.write(self.handshake.flight)
        body = self._wire.read_body()
        if body[0] == ERROR:
            raise Refused(schema.decode("Error", body[2:]), is_sealed=False)
        if body[0] != HANDSHAKE:
            raise ValueError(f"a record of type {body[0]:02x} in clear, where HANDSHAKE is due")
        self.answer = body[2:]
        self.last = self.handshake.finish(self.answer)
        if self.last:
            self._wire.write(self.last)
        self._records = self.handshake.records

    def send(self, kind, **fields):
        """Seals and sends one record."""
        body = schema.encode(NAMES[kind], **fields) if kind in NAMES else b""
        self.send_raw(framed(self._records.seal(bytes([kind, 0]) + body)))

    def send_raw(self, data):
        """Sends bytes as they are, and keeps them."""
        self.sealed.append(data)
        self._wire.write(data)

    def seal(self, kind, **fields):
        """The bytes of a record that is not sent: what is to be done to it is the caller's affair."""
        return bytearray(framed(self._records.seal(bytes([kind, 0]) + schema.encode(NAMES[kind], **fields))))

    def change_key(self):
        """Sends REKEY; what follows is sealed with the next key."""
        self.send(REKEY)
        self._records.change_sending()

    def wait_for(self, kind, matches=lambda _: True):
        """The next record of this type for which `matches` holds; others are kept for later."""
        for place, (known, message) in enumerate(self._waiting):
            if known == kind and matches(message):
                del self._waiting[place]
                return message
        while True:
            known, message = self._next()
            if known == kind and matches(message):
                return message
            if known in NAMES:
                self._waiting.append((known, message))

    def _next(self):
        body = self._open_body(self._wire.read_body())
        kind = body[0]
        message = schema.decode(NAMES[kind], body[2:]) if kind in NAMES else None
        if kind == ERROR:
            raise Refused(message, is_sealed=True)
        if kind == PING:
            self.send(PONG, nonce=message.nonce)
        elif kind == REKEY:
            self.rekeys += 1
            self._records.change_receiving()
        return kind, message

    def _open_body(self, sealed):
        """In Noise XX the server refuses in clear until it has keys, which is after the client has them."""
        try:
            body = self._records.open(sealed)
        except Forged:
            if self.last and not self._has_opened and sealed[0] == ERROR:
                raise Refused(schema.decode("Error", sealed[2:]), is_sealed=False) from None
            raise
        self._has_opened = True
        return body

    def end(self):
        """Reads until the server ends the connection: the error it gave, if it gave one that can be read."""
        refused = None
        while True:
            try:
                self._next()
            except Refused as error:
                refused = refused or error
            except Ended:
                self._wire.close()
                return refused

    def ping(self, nonce):
        """Whether the server answers, and with what it should."""
        self.send(PING, nonce=nonce)
        self.wait_for(PONG, lambda pong: pong.nonce == nonce)

    def close(self):
        """Ends it."""
        self._wire.close()


def opens(body, keys, suite):
    """Whether a body opens with one of these keys, as any of a connection's first records."""
    for key in keys:
        for number in range(8):
            with contextlib.suppress(Forged):
                suite.open(key, number, b"", body)
                return True
    return False
