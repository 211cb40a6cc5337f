"""What two users do over a server, step by step, and what somebody does who means them ill."""

import contextlib
import os
import random
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import schema
from connection import (
    ACK,
    DELIVER,
    ERROR,
    HANDSHAKE,
    PING,
    READY,
    RECEIPT,
    RPC,
    RPC_RESULT,
    SEND,
    SEND_RESULT,
    WELCOME,
    Connection,
    Refused,
    Wire,
    opens,
)
from handshakes import (
    IK,
    KEY_LEN,
    TICKET,
    TICKET_FORWARD_SECRET,
    XX,
    CertificateError,
    ForwardSecretTicket,
    NoiseIk,
    NoiseXx,
    SymmetricTicket,
)

LOGINS_BUSY, SERVER_KEY_UNKNOWN = 2006, 2007
TOKEN_EXPIRED, TICKET_INVALID, DEVICE_UNKNOWN, TOKEN_KEY = 3001, 3008, 3010, 3011
HANDSHAKE_FAILED, RECORD_FORGED, DEVICE_REMOVED = 4025, 4026, 5003
DEVICE_NOT_FOUND = 4027
BUSY_ATTEMPTS_MAX = 8
NOBODY = 2**63 + 11


class Failure(Exception):
    """A step did not go as it should."""


class Device:
    """What a device keeps between its connections."""

    def __init__(self, name, user, number, key, token):
        self.name, self.user, self.number, self.key, self.token = name, user, number, key, token
        self.cursor = self.incarnation = self.receipts = 0
        self.ticket = self.server = None
        self.seen = set()

    def stranger(self, **other):
        """Somebody who says the same of themselves, but for this."""
        known = {"user": self.user, "number": self.number, "key": self.key, "token": self.token} | other
        made = Device("a stranger", **known)
        made.ticket, made.server = self.ticket, self.server
        return made

    def login(self, **who):
        """The Login's bytes."""
        known = {"cursor": self.cursor, "incarnation": self.incarnation, "receipts": self.receipts}
        return schema.encode("Login", keep_alive_s=60, client="peer.py/1", **known, **who)


class Session:
    """A device that is logged in."""

    def __init__(self, device, connection):
        self.device, self.connection = device, connection
        welcome = connection.wait_for(WELCOME)
        expect(welcome.version == 1, f"version {welcome.version}")
        expect(0 < len(welcome.ticket) <= 128, f"a ticket of {len(welcome.ticket)} bytes")
        device.ticket = (welcome.ticket, connection.handshake.keys.next_secret)
        if not device.cursor:
            device.incarnation = welcome.incarnation
        self._last, self._inbox = None, {}
        connection.send(READY)

    def send(self, other, payload):
        """Sends a message; its place in the conversation."""
        message_id, conversation = os.urandom(16), conversation_of(self.device, other)
        self.connection.send(SEND, client_message_id=message_id, conversation=conversation, payload=payload)
        result = self.connection.wait_for(SEND_RESULT, lambda found: found.client_message_id == message_id)
        expect(not result.HasField("error"), f"not accepted: error {result.error.code}")
        return result.conversation_seq

    def receive(self, sender, payload):
        """Takes delivery up to this message, and acknowledges; its place in the conversation."""
        while payload not in self._inbox:
            self._take_delivery()
        entry = self._inbox.pop(payload)
        expect(entry.sender == sender.user, f"from user {entry.sender}")
        expect(entry.sender_device == sender.number, f"from device {entry.sender_device}")
        expect(entry.conversation == conversation_of(self.device, sender), "in another conversation")
        return entry.conversation_seq

    def _take_delivery(self):
        deliver = self.connection.wait_for(DELIVER)
        expect(self._last in (None, deliver.previous), f"previous {deliver.previous} after {self._last}: a hole")
        self._last = deliver.previous
        for entry in deliver.entries:
            expect(entry.inbox_seq > self._last, f"entry {entry.inbox_seq} after {self._last}")
            self._last = entry.inbox_seq
            key = (entry.conversation, entry.conversation_seq)
            if key not in self.device.seen:
                self.device.seen.add(key)
                self._inbox[entry.payload] = entry
        self.device.cursor = max(self.device.cursor, self._last)
        self.connection.send(ACK, inbox_seq=self.device.cursor)

    def wait_for_delivery(self, other, seq):
        """Waits for the receipt that says the other has this message."""
        conversation = conversation_of(self.device, other)

        def is_told(receipt):
            return any(mark.conversation == conversation and mark.delivered >= seq for mark in receipt.marks)

        receipt = self.connection.wait_for(RECEIPT, is_told)
        self.device.receipts = max(self.device.receipts, receipt.version)

    def ask(self, **request):
        """A request's answer."""
        number = int.from_bytes(os.urandom(4), "big")
        self.connection.send(RPC, id=number, **request)
        return self.connection.wait_for(RPC_RESULT, lambda result: result.id == number)

    def is_alive(self):
        """Fails where the session has been ended or replaced."""
        self.connection.ping(int.from_bytes(os.urandom(4), "big"))


def run(target, root, users, suites):
    """Everything, for each suite; then what is for the end."""
    for suite in suites:
        World(target, root, suite).run(*users)
    World(target, root, suites[0]).remove(users[1])


def expect(holds, otherwise):
    """`otherwise` says what was found instead."""
    if not holds:
        raise Failure(otherwise)


def conversation_of(device, other):
    """The direct conversation of two users."""
    return b"".join(user.to_bytes(8, "big") for user in sorted((device.user, other.user)))


def is_in_clear(body):
    """Whether this is a WELCOME or an ERROR that nobody has sealed."""
    for kind, name in ((WELCOME, "Welcome"), (ERROR, "Error")):
        if body[:2] == bytes([kind, 0]):
            with contextlib.suppress(ValueError):
                schema.decode(name, body[2:])
                return True
    return False


class World:
    """A server, and the suite to talk to it with."""

    def __init__(self, target, root, suite):
        # The one that comes after it, say: any root that a client trusts will do.
        next_root = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        self._target, self._roots, self._suite = target, (next_root, root), suite

    @contextlib.contextmanager
    def _step(self, what):
        try:
            yield
        except Exception as error:
            raise Failure(f"{self._suite.name}: {what}: {type(error).__name__}: {error}") from error
        print(f"ok  {self._suite.name}: {what}", flush=True)

    def _connect(self, device, kind, with_token=False, roots=None):
        if kind in (TICKET, TICKET_FORWARD_SECRET):
            made = SymmetricTicket if kind == TICKET else ForwardSecretTicket
            return Connection(self._target, made(self._suite, device.login(), *device.ticket))
        who = {"token": device.token} if with_token else {"user": device.user, "device": device.number}
        login = device.login(**who)
        if kind == IK:
            return Connection(self._target, NoiseIk(self._suite, login, device.key, device.server))
        now_ms = time.time_ns() // 1_000_000
        connection = Connection(self._target, NoiseXx(self._suite, login, device.key, roots or self._roots, now_ms))
        found = connection.handshake.certificate
        device.server = (found.key_id, found.public)
        return connection

    def _log_in(self, device, kind, with_token=False):
        """A session; a server that has too many logins at once is asked again."""
        for attempt in range(BUSY_ATTEMPTS_MAX):
            try:
                return Session(device, self._connect(device, kind, with_token))
            except Refused as refused:
                if refused.code != LOGINS_BUSY:
                    raise
                time.sleep(max(refused.retry_s, random.uniform(0, 0.1 * 2**attempt)))
        raise Failure(f"the server was busy {BUSY_ATTEMPTS_MAX} times")

    def _again(self, session, kind, with_token=False):
        """The same device on a new connection, whose READY the server has seen: no later one may come before it."""
        session.connection.close()
        session = self._log_in(session.device, kind, with_token)
        session.is_alive()
        return session

    def _talk(self, sender, receiver):
        """A message there, its receipt back."""
        payload = os.urandom(20).hex().encode()
        seq = sender.send(receiver.device, payload)
        expect(receiver.receive(sender.device, payload) == seq, "another place in the conversation")
        sender.wait_for_delivery(receiver.device, seq)

    def _is_refused(self, code, is_sealed, device, kind, with_token=False):
        """A login that must end in this very error, with READY if that is let through."""
        try:
            refused = self._log_in(device, kind, with_token).connection.end()
        except Refused as error:
            refused = error
        except ValueError as error:
            raise Failure(f"type {kind}: {error}, where {code} is due") from error
        expect(refused is not None, f"the connection ended without an error that can be read, where {code} is due")
        expect(refused.code == code, f"type {kind}: {refused}, where {code} is due")
        how = "sealed" if is_sealed else "in clear"
        expect(refused.is_sealed == is_sealed, f"type {kind}: {refused}, which should be {how}")

    def run(self, a, b):
        """All steps that leave both devices as they were."""
        with self._step("a client that trusts other roots sends nothing and leaves"):
            self._wrong_root(a)
        with self._step(f"{a.name} registers its key by XX with a token, and checks the certificate"):
            one = self._log_in(a, XX, with_token=True)
        with self._step(f"{b.name} likewise"):
            two = self._log_in(b, XX, with_token=True)
        with self._step("a message, its delivery, its acknowledgement, its receipt"):
            self._talk(one, two)
        with self._step("both sides change their keys, twice"):
            self._change_keys(one)
            self._talk(one, two)
        with self._step(f"{a.name} comes back by IK, without a token"):
            one = self._again(one, IK)
            self._talk(one, two)
        with self._step("a first flight of IK, sent again by another, opens to nobody and ends no session"):
            self._replay(one)
        for kind, what in ((TICKET, "symmetric"), (TICKET_FORWARD_SECRET, "forward-secret"), (TICKET, "symmetric")):
            with self._step(f"{a.name} comes back by {what} ticket, and with the ticket that this gave"):
                one = self._again(self._again(one, kind), kind)
                self._talk(one, two)
                self._change_keys(one)
                self._talk(two, one)
            with self._step(f"a first flight of a {what} ticket, sent again by another: likewise"):
                self._replay(one)
        with self._step(f"{b.name} comes back by XX, without a token"):
            two = self._again(two, XX)
            self._talk(one, two)
        with self._step("both messages of XX, sent again by another: likewise"):
            self._replay(two)
        with self._step("who has no right to log in cannot, nor ends another's session by trying"):
            self._strangers(one)
        with self._step("a record that is changed, or repeated, ends the connection"):
            one = self._forge(one)
        with self._step("devices are named and listed"):
            self._name(one)
        one.connection.close()
        two.connection.close()

    def _wrong_root(self, device):
        roots = [Ed25519PrivateKey.generate().public_key().public_bytes_raw() for _ in self._roots]
        try:
            self._connect(device, XX, with_token=True, roots=roots)
        except CertificateError:
            return
        raise Failure("the client takes a certificate that none of its roots has signed")

    def _change_keys(self, session):
        for _ in range(2):
            before = session.connection.rekeys
            session.connection.change_key()
            session.is_alive()
            expect(session.connection.rekeys == before + 1, "the server did not answer REKEY with REKEY")

    def _replay(self, live):
        """Everything that was seen of a connection's opening, sent by somebody who knows no key."""
        seen = live.connection
        keys = seen.handshake.keys
        wire = Wire(self._target)
        wire.write(seen.handshake.flight)
        answer = wire.read_body()
        expect(answer[0] == HANDSHAKE, f"a record of type {answer[0]:02x}, where HANDSHAKE is due")
        expect(answer[2:] != seen.answer, "the server's answer is the same as the first time")
        wire.write(seen.last + seen.sealed[0])
        bodies = wire.read_to_the_end()
        wire.close()
        expect(len(bodies) >= 1, "the server said nothing more")
        if seen.last:
            told = schema.decode("Error", bodies[0][2:])
            expect(bodies[0][0] == ERROR and told.code == HANDSHAKE_FAILED, f"{told}, where {HANDSHAKE_FAILED} is due")
        else:
            for body in bodies:
                expect(not opens(body, (keys.client, keys.server), self._suite), "a record opens with the seen keys")
                expect(not is_in_clear(body), "a record in clear, after the keys are agreed")
        live.is_alive()

    def _strangers(self, live):
        device = live.device
        key_id, public = device.server
        other_key = {"key": os.urandom(KEY_LEN)}
        for kind in (IK, XX):
            self._is_refused(DEVICE_UNKNOWN, True, device.stranger(**other_key), kind)
            self._is_refused(DEVICE_UNKNOWN, True, device.stranger(user=NOBODY), kind)
            self._is_refused(TOKEN_KEY, True, device.stranger(**other_key), kind, with_token=True)
        lost = device.stranger()
        lost.server = (key_id ^ 0x4000, public)
        self._is_refused(SERVER_KEY_UNKNOWN, False, lost, IK)
        lost.server = (key_id, os.urandom(KEY_LEN))
        self._is_refused(HANDSHAKE_FAILED, False, lost, IK)
        ticket, secret = device.ticket
        for kind in (TICKET, TICKET_FORWARD_SECRET):
            lost.ticket = (ticket, os.urandom(KEY_LEN))
            self._is_refused(HANDSHAKE_FAILED, False, lost, kind)
            lost.ticket = (ticket[:-1] + bytes([ticket[-1] ^ 1]), secret)
            self._is_refused(TICKET_INVALID, False, lost, kind)
        live.is_alive()

    def _forge(self, session):
        def changed(place):
            def forge(data):
                data[place] ^= 1
                return [data]

            return forge

        for forge in (changed(2), changed(-1), lambda data: [data, data]):
            session = self._again(session, TICKET)
            for data in forge(session.connection.seal(PING, nonce=1)):
                session.connection.send_raw(bytes(data))
            refused = session.connection.end()
            expect(refused is not None, "the connection ended without an error that can be read")
            expect(refused.code == RECORD_FORGED and refused.is_sealed, f"{refused}, where {RECORD_FORGED} is due")
        return self._again(session, TICKET)

    def _name(self, session):
        name = f"peer.py, {self._suite.name}"
        named = session.ask(name_device=schema.message("NameDevice", device=session.device.number, name=name))
        expect(named.WhichOneof("result") == "device_named", f"error {named.error.code}")
        listed = session.ask(list_devices=schema.message("ListDevices")).devices.devices
        ours = [device for device in listed if device.device == session.device.number]
        expect(len(ours) == 1 and ours[0].name == name, f"not listed by its name: {listed}")
        expect(ours[0].registered, "not listed as registered")
        missing = session.ask(name_device=schema.message("NameDevice", device=60000, name=name))
        expect(missing.error.code == DEVICE_NOT_FOUND, f"error {missing.error.code}, where {DEVICE_NOT_FOUND} is due")

    def remove(self, device):
        """For the end: the device removes itself."""
        with self._step(f"{device.name} removes its device: its session ends; ticket, key and token are worth nothing"):
            session = self._log_in(device, TICKET)
            request = schema.message("RemoveDevice", device=device.number)
            session.connection.send(RPC, id=1, remove_device=request)
            answer = session.connection.wait_for(RPC_RESULT)
            expect(answer.WhichOneof("result") == "device_removed", f"error {answer.error.code}")
            refused = session.connection.end()
            expect(refused is not None and refused.code == DEVICE_REMOVED, f"{refused}, where {DEVICE_REMOVED} is due")
            for kind in (TICKET, TICKET_FORWARD_SECRET, IK, XX):
                self._is_refused(DEVICE_UNKNOWN, True, device, kind)
            for kind in (IK, XX):
                self._is_refused(TOKEN_EXPIRED, True, device, kind, with_token=True)
