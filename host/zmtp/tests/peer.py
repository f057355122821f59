"""libzmq at the other end, for tests: does what it is told line by line and answers each line with one line.

Words of a line are separated by spaces. Frames are hexadecimal, separated by commas; an empty frame is "-".
"""

import sys
import threading

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

# Nothing takes so long unless it is broken.
PATIENCE_MS = 20_000

context = zmq.Context()
sockets = {}
authenticators = {}


def frames(text):
    return [b"" if part == "-" else bytes.fromhex(part) for part in text.split(",")]


def text(parts):
    return ",".join(part.hex() or "-" for part in parts)


def socket(name, kind):
    made = sockets[name] = context.socket(getattr(zmq, kind))
    made.linger = PATIENCE_MS
    made.rcvtimeo = made.sndtimeo = PATIENCE_MS


def option(name, key, value):
    known = getattr(zmq, key)
    if value.startswith("int:"):
        sockets[name].setsockopt(known, int(value[4:]))
    else:
        sockets[name].setsockopt(known, value[4:].encode())


def bind(name, endpoint):
    sockets[name].bind(endpoint)
    return sockets[name].getsockopt_string(zmq.LAST_ENDPOINT)


def connect(name, endpoint):
    sockets[name].connect(endpoint)


def send(name, message):
    sockets[name].send_multipart(frames(message))


def recv(name):
    return text(sockets[name].recv_multipart())


def send_many(name, size, count):
    for number in range(int(count)):
        sockets[name].send_multipart([number.to_bytes(4, "big"), b"x" * int(size)])


def recv_many(name, size, count):
    for number in range(int(count)):
        first, body = sockets[name].recv_multipart()[-2:]
        assert first == number.to_bytes(4, "big") and body == b"x" * int(size), (number, first, len(body))


def echo(name, count):
    """Sends back what comes, in a thread of its own: nothing else may be done with this socket then."""

    def run():
        for _ in range(int(count)):
            sockets[name].send_multipart(sockets[name].recv_multipart())

    threading.Thread(target=run, daemon=True).start()


def auth(mechanism, *arguments):
    """Only clients with this name and password, or with this key, or "any"."""
    authenticator = authenticators.get("") or ThreadAuthenticator(context)
    if not authenticators:
        authenticators[""] = authenticator
        authenticator.start()
    if mechanism == "plain":
        authenticator.configure_plain(domain="*", passwords={arguments[0]: arguments[1]})
    elif arguments[0] == "any":
        authenticator.configure_curve(domain="*", location=zmq.auth.CURVE_ALLOW_ANY)
    else:
        allowed = arguments[0].encode()

        class Provider:
            def callback(self, domain, key):
                return key == allowed

        authenticator.configure_curve_callback(domain="*", credentials_provider=Provider())


def monitor(name):
    sockets["monitor of " + name] = sockets[name].get_monitor_socket()


def event(name, *wanted):
    """Waits for one of these events of a monitored socket."""
    from zmq.utils.monitor import recv_monitor_message

    known = {int(getattr(zmq, "EVENT_" + event)): event for event in wanted}
    monitor = sockets["monitor of " + name]
    while monitor.poll(PATIENCE_MS):
        seen = int(recv_monitor_message(monitor)["event"])
        if seen in known:
            return known[seen]
    raise TimeoutError(f"no event of {wanted}")


def close(name):
    sockets.pop(name).close()


def keys():
    public, secret = zmq.curve_keypair()
    return f"{public.decode()} {secret.decode()}"


def main():
    commands = {
        known.__name__: known
        for known in [auth, bind, close, connect, echo, event, keys, monitor, option, recv, recv_many, send, send_many, socket]
    }
    print("ok", zmq.zmq_version(), zmq.has("curve"), flush=True)
    for line in sys.stdin:
        word, *arguments = line.split()
        try:
            answer = commands[word](*arguments)
            print("ok", "" if answer is None else answer, flush=True)
        except Exception as error:
            print("error", type(error).__name__, error, flush=True)


main()
