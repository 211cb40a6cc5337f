#!/usr/bin/env python3
"""A client of Culver's in another language, written from docs/protocol.md and the schema alone: two users talk over a
running server through every handshake and both suites, and what must be refused is tried.

    python3 -m venv VENV && VENV/bin/pip install --require-hashes -r protocol/tests/peer/requirements.txt
    VENV/bin/python protocol/tests/peer/peer.py --self-test
    VENV/bin/python protocol/tests/peer/peer.py --target 127.0.0.1:7400 --culver BINARY --data-dir DIR
    VENV/bin/python protocol/tests/peer/peer.py --target 127.0.0.1:7400 --config FILE

With --data-dir it reads the root from DIR/dev-credentials.json, makes device keys, and has BINARY mint tokens for them.
With --config it has them from a file, all bytes in hex, `key` being the device's secret key:

    {"server_root": "…", "a": {"user": 7, "device": 1, "key": "…", "token": "…"}, "b": {…}}

Prints a line for each step. Exit code 0: all went as it should; 1: it did not, and the last line says what.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

# Nothing is left behind in the source tree.
sys.dont_write_bytecode = True

import scenario  # noqa: E402
import vectors  # noqa: E402
from handshakes import SUITES, public_key  # noqa: E402


def main():
    """Runs what the arguments ask for."""
    arguments = parse()
    try:
        if arguments.self_test:
            self_test()
        elif arguments.write_vectors:
            vectors.FILE.write_text(vectors.text_of(vectors.make()))
            print(f"wrote {vectors.FILE}")
        else:
            host, _, port = arguments.target.rpartition(":")
            root, users = from_config(arguments) if arguments.config else from_data_dir(arguments)
            suites = [suite for suite in SUITES if suite.name in arguments.suites]
            scenario.run((host.strip("[]"), int(port)), root, users, suites)
    except Exception as error:
        print(f"peer: {type(error).__name__}: {error}", file=sys.stderr)
        if arguments.trace:
            raise
        return 1
    return 0


def parse():
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--self-test", action="store_true", help="check the vectors; needs no server")
    parser.add_argument("--write-vectors", action="store_true", help="make protocol/tests/vectors/handshake.json anew")
    parser.add_argument("--target", metavar="HOST:PORT", help="the server")
    parser.add_argument("--config", type=pathlib.Path, metavar="FILE", help="the root, keys and tokens, as above")
    parser.add_argument("--culver", type=pathlib.Path, metavar="BINARY", help="mints tokens with `culver token`")
    parser.add_argument("--data-dir", type=pathlib.Path, metavar="DIR", help="the server's data directory")
    parser.add_argument("--users", nargs=2, type=int, default=(7, 8), metavar=("A", "B"), help="with --data-dir")
    parser.add_argument("--suites", nargs="+", default=[suite.name for suite in SUITES], help="which [both]")
    parser.add_argument("--trace", action="store_true", help="show where in this program an error arose")
    arguments = parser.parse_args()
    has_target = arguments.target and (arguments.config or (arguments.culver and arguments.data_dir))
    if not (has_target or arguments.self_test or arguments.write_vectors):
        parser.error("--self-test, or --target with --config, or --target with --culver and --data-dir")
    unknown = set(arguments.suites) - {suite.name for suite in SUITES}
    if unknown:
        parser.error(f"no such suite: {', '.join(unknown)}; there are {', '.join(suite.name for suite in SUITES)}")
    return arguments


def self_test():
    """What can be proved without a server."""
    print(f"ok  {vectors.check_published()} published vectors of Noise")
    print(f"ok  {vectors.check_records()} records of protocol/tests/vectors/records.json are of the schema")
    print(f"ok  {vectors.check_file()} handshakes of {vectors.FILE.name}, byte for byte")
    print(f"ok  {vectors.check_refusals()} bad certificates and changed answers are refused")


def from_config(arguments):
    """The root and both users, as the file has them."""
    config = json.loads(arguments.config.read_text())
    users = []
    for name in ("a", "b"):
        told = config[name]
        key = bytes.fromhex(told["key"])
        users.append(scenario.Device(name.upper(), told["user"], told["device"], key, told["token"]))
    return bytes.fromhex(config["server_root"]), users


def from_data_dir(arguments):
    """The root, and two users with fresh keys."""
    credentials = json.loads((arguments.data_dir / "dev-credentials.json").read_text())
    users = []
    for name, user in zip("AB", arguments.users, strict=True):
        key = os.urandom(32)
        token = mint(arguments, user, 1, public_key(key))
        users.append(scenario.Device(name, user, 1, key, token))
    return bytes.fromhex(credentials["server_root"]), users


def mint(arguments, user, device, public):
    """A token that registers this device with this key."""
    command = [arguments.culver, "token", "--data-dir", arguments.data_dir]
    command += ["--user", str(user), "--device", str(device), "--device-key", public.hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`culver token` failed: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
