"""`protocol/tests/vectors/handshake.json`: made from docs/protocol.md by what is in this folder, and checked by
Culver's own code as well (`cargo test -p culver-protocol --test vectors`). Neither has seen the other's.

Also the published vectors of Noise, so that the library this rests on is known to be right.
"""

import json
import os
import pathlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import handshakes
import schema
from handshakes import (
    IK,
    KEY_LEN,
    SUITES,
    TICKET,
    TICKET_FORWARD_SECRET,
    XX,
    Certificate,
    CertificateError,
    ForwardSecretTicket,
    Forged,
    HandshakeError,
    NoiseIk,
    NoiseRecords,
    NoiseXx,
    PlainRecords,
    SymmetricTicket,
    framed,
    hkdf,
    noise,
    noise_keys,
    public_key,
    sha256,
)

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "vectors"
FILE = FOLDER / "handshake.json"
PUBLISHED = ("noise-cacophony.json", "noise-snow.json")

USER, DEVICE, KEY_ID = 7, 1, 258
NOW_MS = 1_800_000_000_000
TICKET_BYTES = bytes(range(0x60, 0x60 + 110))
READY, WELCOME, PING, PONG, REKEY, HANDSHAKE = 0x01, 0x02, 0x03, 0x04, 0x07, 0x09


def secret(what):
    """A secret that nobody should use."""
    return sha256(b"culver handshake vectors: " + what.encode())


DEVICE_KEY, SERVER_KEY = secret("the device's key"), secret("the server's key")
TICKET_SECRET = secret("the ticket's secret")
ROOT = Ed25519PrivateKey.from_private_bytes(secret("the root"))
ROOT_PUBLIC = ROOT.public_key().public_bytes_raw()
NEXT_ROOT = Ed25519PrivateKey.from_private_bytes(secret("the root after it"))
ROOTS = (ROOT_PUBLIC, NEXT_ROOT.public_key().public_bytes_raw())


def certificate(root=ROOT, key_id=KEY_ID, public=None, not_before_ms=NOW_MS - 1000, not_after_ms=NOW_MS + 86_400_000):
    """A server key's certificate."""
    signed = Certificate(key_id, public or public_key(SERVER_KEY), not_before_ms, not_after_ms).signed_bytes()
    return signed[len(b"culver server key") :] + root.sign(signed)


def record(body):
    """A record with its length."""
    return framed(bytes(body))


class Server:
    """The server's side of one handshake: what it answers, what login it finds, and the keys."""

    def __init__(self, kind, suite, flight, entropy):
        preamble, message = flight[:8], flight[10:]
        assert int.from_bytes(flight[8:10], "big") == len(message)
        self.suite, self.records, self.keys, self.login = suite, None, None, None
        if kind == TICKET:
            self.answer = self._symmetric(preamble, message, entropy)
            return
        patterns = {IK: ("IK", {"own": SERVER_KEY}), XX: ("XX", {"own": SERVER_KEY})}
        pattern, keys = patterns.get(kind, ("NNpsk0", {"shared": TICKET_SECRET}))
        prologue = preamble
        if kind == TICKET_FORWARD_SECRET:
            prologue, message = preamble + message[1 : 1 + message[0]], message[1 + message[0] :]
        name = f"Noise_{pattern}_25519_{suite.noise_name}_SHA256"
        self._noise = noise(name, prologue, False, ephemeral=entropy, **keys)
        login = bytes(self._noise.read_message(message))
        if kind == XX:
            assert login == b""
            self.answer = bytes(self._noise.write_message(certificate()))
            return
        self.answer = bytes(self._noise.write_message(b""))
        self._agreed(login)

    def finish(self, message):
        """Noise XX: the client's second message, with its length."""
        self._agreed(bytes(self._noise.read_message(message[2:])))

    def _agreed(self, login):
        self.login, self.keys = login, noise_keys(self._noise, is_client=False)
        self.records = NoiseRecords(self._noise)

    def _symmetric(self, preamble, message, entropy):
        start = message[: 1 + message[0] + KEY_LEN]
        sealed = message[len(start) :]
        hello = sha256(b"Culver_resume_" + self.suite.noise_name.encode(), preamble, start)
        early_key = hkdf(hello, TICKET_SECRET, b"culver early")
        self.login = self.suite.open(early_key, 0, hello, sealed)
        final = sha256(hello, sha256(sealed), entropy)
        derived = hkdf(final, TICKET_SECRET, b"culver keys", 96)
        self.keys = handshakes.Keys(derived[:32], derived[32:64], final, derived[64:])
        self.records = PlainRecords(self.suite, derived[32:64], derived[:32])
        return entropy


def login_of(kind):
    """What the client says of itself: it registers by XX, comes back by IK, and says nothing with a ticket."""
    own = {XX: {"token": "TOKEN"}, IK: {"user": USER, "device": DEVICE}}.get(kind, {})
    return schema.encode("Login", keep_alive_s=60, client="example/1", **own)


def client_of(kind, suite, login, entropy):
    """The client's side, and what it is called."""
    if kind == IK:
        server = (KEY_ID, public_key(SERVER_KEY))
        return NoiseIk(suite, login, DEVICE_KEY, server, entropy), f"Noise_IK_25519_{suite.noise_name}_SHA256"
    if kind == XX:
        client = NoiseXx(suite, login, DEVICE_KEY, (ROOT_PUBLIC,), NOW_MS, entropy)
        return client, f"Noise_XX_25519_{suite.noise_name}_SHA256"
    if kind == TICKET:
        client = SymmetricTicket(suite, login, TICKET_BYTES, TICKET_SECRET, entropy)
        return client, client.name
    client = ForwardSecretTicket(suite, login, TICKET_BYTES, TICKET_SECRET, entropy)
    return client, f"Noise_NNpsk0_25519_{suite.noise_name}_SHA256"


def inputs(kind, client):
    """What the two sides bring along."""
    if kind in (TICKET, TICKET_FORWARD_SECRET):
        said = {"ticket": TICKET_BYTES.hex(), "ticket_secret": TICKET_SECRET.hex()}
        if kind == TICKET:
            return said | {"hello": client.hello.hex(), "early_key": client.early_key.hex()}
        return said | {"prologue": (client.preamble + TICKET_BYTES).hex()}
    public = public_key(DEVICE_KEY)
    said = {
        "device_secret": DEVICE_KEY.hex(),
        "device_public": public.hex(),
        "fingerprint": handshakes.fingerprint(public).hex(),
        "jkt": handshakes.thumbprint(public),
        "server_secret": SERVER_KEY.hex(),
        "server_public": public_key(SERVER_KEY).hex(),
        "server_key_id": KEY_ID,
        "prologue": client.preamble.hex(),
    }
    if kind == IK:
        return said
    found = client.certificate
    return said | {
        "root_secret": ROOT.private_bytes_raw().hex(),
        "root_public": ROOT_PUBLIC.hex(),
        "not_before_ms": str(found.not_before_ms),
        "not_after_ms": str(found.not_after_ms),
        "now_ms": str(NOW_MS),
        "certificate": certificate().hex(),
    }


def first_records(client, server):
    """The first records of a connection: both sides change their keys."""
    made = []

    def say(side, what, kind, body=b""):
        ours, theirs = (client, server) if side == "client" else (server, client)
        plain = bytes([kind, 0]) + body
        sealed = ours.records.seal(plain)
        assert theirs.records.open(sealed) == plain
        if kind == REKEY:
            ours.records.change_sending()
            theirs.records.change_receiving()
        made.append({"from": side, "what": what, "plain": plain.hex(), "hex": record(sealed).hex()})

    ping = schema.encode("Ping", nonce=300)
    say("server", "WELCOME", WELCOME, schema.encode("Welcome", ticket=b"ticket", version=1))
    say("client", "READY", READY)
    say("client", "REKEY", REKEY)
    say("client", "PING, under the client's next key", PING, ping)
    say("server", "REKEY", REKEY)
    say("server", "PONG, under the server's next key", PONG, ping)
    return made


def make_one(kind, suite):
    """One handshake, whole."""
    names = {IK: "Noise IK", XX: "Noise XX", TICKET: "ticket", TICKET_FORWARD_SECRET: "ticket, forward secrecy"}
    login = login_of(kind)
    what = f"{kind} {suite.number}"
    entropies = [secret(f"{side}'s randomness, {what}") for side in ("the client", "the server")]
    client, protocol = client_of(kind, suite, login, entropies[0])
    server = Server(kind, suite, client.flight, entropies[1])
    last = client.finish(server.answer)
    if last:
        server.finish(last)
    assert server.login == login
    assert server.keys == client.keys
    messages = [
        {"from": "client", "what": "preamble, length, message", "hex": client.flight.hex()},
        {"from": "server", "what": "HANDSHAKE", "hex": record(bytes([HANDSHAKE, 0]) + server.answer).hex()},
    ]
    if last:
        messages.append({"from": "client", "what": "length, message", "hex": last.hex()})
    return {
        "name": f"{names[kind]}, {suite.name}",
        "protocol": protocol,
        "handshake": kind,
        "suite": suite.number,
        "login": login.hex(),
        **inputs(kind, client),
        "client_entropy": entropies[0].hex(),
        "server_entropy": entropies[1].hex(),
        "messages": messages,
        "hash": client.keys.hash.hex(),
        "client_key": client.keys.client.hex(),
        "server_key": client.keys.server.hex(),
        "next_ticket_secret": client.keys.next_secret.hex(),
        "records": first_records(client, server),
    }


def make():
    """The whole file."""
    return [make_one(kind, suite) for kind in (IK, XX, TICKET, TICKET_FORWARD_SECRET) for suite in SUITES]


def text_of(vectors):
    """As the file has it."""
    return json.dumps(vectors, indent=2, ensure_ascii=False) + "\n"


def check_file():
    """The file against what is made here; how many it holds."""
    made, found = make(), json.loads(FILE.read_text())
    for ours, theirs in zip(made, found, strict=True):
        for field in ours.keys() | theirs.keys():
            if ours.get(field) != theirs.get(field):
                raise AssertionError(f"{FILE.name}, {ours['name']}: {field} differs: {ours.get(field)} here")
    return len(found)


def check_published():
    """Noise's own vectors through the library that all this rests on, for what Culver speaks of it."""
    checked = 0
    patterns = tuple(f"Noise_{pattern}_25519_" for pattern in ("IK", "XX", "NNpsk0"))
    for file in PUBLISHED:
        for vector in json.loads((FOLDER / "published" / file).read_text())["vectors"]:
            name = vector["protocol_name"]
            if name.startswith(patterns) and name.endswith("_SHA256"):
                check_one_published(vector)
                checked += 1
    return checked


def check_one_published(vector):
    """One of them, and records with it: sealed by the library, and by the primitives alone."""

    def side(name, is_client):
        def key(field):
            return bytes.fromhex(vector.get(f"{name}_{field}") or "")

        shared = bytes.fromhex((vector.get(f"{name}_psks") or [""])[0])
        keys = {"own": key("static"), "ephemeral": key("ephemeral"), "shared": shared}
        return noise(vector["protocol_name"], key("prologue"), is_client, other=key("remote_static"), **keys)

    client, server = side("init", True), side("resp", False)
    suite = next(suite for suite in SUITES if suite.noise_name in vector["protocol_name"])
    plain = None
    for index, step in enumerate(vector["messages"]):
        sender, receiver = (client, server) if index % 2 == 0 else (server, client)
        payload, expected = bytes.fromhex(step["payload"]), bytes.fromhex(step["ciphertext"])
        if not sender.handshake_finished:
            assert bytes(sender.write_message(payload)) == expected, vector["protocol_name"]
            assert bytes(receiver.read_message(expected)) == payload, vector["protocol_name"]
            continue
        if plain is None:
            keys = noise_keys(client, is_client=True)
            plain = {client: PlainRecords(suite, keys.client, b""), server: PlainRecords(suite, keys.server, b"")}
        assert sender.encrypt(payload) == expected == plain[sender].seal(payload), vector["protocol_name"]
        assert receiver.decrypt(expected) == payload, vector["protocol_name"]


def check_records():
    """Every record of `records.json` through the schema: what is read from its bytes gives the same bytes again."""
    checked = 0
    for vector in json.loads((FOLDER / "records.json").read_text()):
        body = bytes.fromhex(vector["hex"])[2:]
        name = "".join(part.capitalize() for part in vector["type"].split("_"))
        if f"culver.v1.{name}" not in schema.MESSAGES:
            continue
        read = schema.decode(name, body[2:])
        if vector.get("canonical", True):
            assert read.SerializeToString(deterministic=True) == body[2:], vector["name"]
        checked += 1
    return checked


def check_refusals():
    """What a client must not believe; how many things that were."""
    refused = 0
    for root in (ROOT, NEXT_ROOT):
        Certificate.check(certificate(root=root), ROOTS, NOW_MS, public_key(SERVER_KEY))
    for suite in SUITES:
        for data in bad_certificates():
            try:
                Certificate.check(data, ROOTS, NOW_MS, public_key(SERVER_KEY))
            except CertificateError:
                refused += 1
            else:
                raise AssertionError(f"a bad certificate is taken for a good one: {data.hex()}")
        for kind in (IK, XX, TICKET, TICKET_FORWARD_SECRET):
            refused += check_changed_answers(kind, suite)
    return refused


def bad_certificates():
    """Each wrong in one way."""
    good = certificate()
    yield from (good[:-1], good + b"\0", b"", bytes([2]) + good[1:])
    yield certificate(root=Ed25519PrivateKey.from_private_bytes(secret("another root")))
    yield certificate(public=public_key(secret("another server")))
    yield certificate(not_before_ms=NOW_MS + 1)
    yield certificate(not_after_ms=NOW_MS)
    for place in range(len(good)):
        yield good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :]


def check_changed_answers(kind, suite):
    """No byte of a server's message can be changed. (With the symmetric ticket that shows in the first record.)"""
    whole = len(Server(kind, suite, client_of(kind, suite, b"login", None)[0].flight, os.urandom(KEY_LEN)).answer)
    for place in range(whole):
        client, _ = client_of(kind, suite, b"login", None)
        server = Server(kind, suite, client.flight, os.urandom(KEY_LEN))
        answer = bytearray(server.answer)
        answer[place] ^= 0x04
        try:
            last = client.finish(answer)
            if kind == XX:
                server.finish(last)
            client.records.open(server.records.seal(b"a record"))
        except (HandshakeError, Forged, InvalidTag):
            continue
        raise AssertionError(f"type {kind}: byte {place} of the server's message can be changed unseen")
    return whole
