"""Measures `examples/forward.rs` against libzmq's `zmq.proxy`, both between the same peers of libzmq.

    cargo build --release -p zmtp --example forward
    python3 examples/forward.py PATH/TO/release/examples/forward

One DEALER keeps so many requests of 200 bytes outstanding, another sends each back. Rounds take turns. Prints round trips per second and
the forwarder's own CPU time for each.
"""

import os
import statistics
import subprocess
import sys
import time

import zmq

SECONDS = float(os.environ.get("SECONDS", 3))
ROUNDS = int(os.environ.get("ROUNDS", 3))
BODY = b"x" * 200


def proxy():
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket in (front, back):
        socket.bind("tcp://127.0.0.1:*")
    print(*(socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (front, back)), flush=True)
    zmq.proxy(front, back)


def echo(endpoint):
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    # A proxy between a socket and itself sends back what comes, without any Python in between.
    zmq.proxy(socket, socket)


def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(command, outstanding):
    forwarder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    front, back = forwarder.stdout.readline().split()
    worker = subprocess.Popen([sys.executable, __file__, "echo", back])
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.linger = 0
    client.connect(front)
    try:
        for _ in range(outstanding):
            client.send(BODY)
        for _ in range(2000):
            client.recv()
            client.send(BODY)
        count, used, start = 0, cpu(forwarder.pid), time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS:
            for _ in range(64):
                client.recv()
                client.send(BODY)
            count += 64
        return count / elapsed, (cpu(forwarder.pid) - used) / count * 1e6
    finally:
        client.close()
        for process in (worker, forwarder):
            process.kill()
            process.wait()


def main():
    kinds = {
        "libzmq zmq.proxy": [sys.executable, __file__, "proxy"],
        "zmtp": [sys.argv[1]],
        "zmtp, one thread": [sys.argv[1], "one-thread"],
    }
    for outstanding in (64, 1):
        results = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, command in kinds.items():
                results[kind].append(measure(command, outstanding))
        base = statistics.median(rate for rate, _ in results["libzmq zmq.proxy"])
        for kind, rounds in results.items():
            rate, used = (statistics.median(values) for values in zip(*rounds))
            print(f"{outstanding:3} outstanding  {kind:18} {rate:9.0f}/s  x {rate / base:.2f}  {used:6.2f} us of CPU each", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "proxy":
        proxy()
    elif sys.argv[1] == "echo":
        echo(sys.argv[2])
    else:
        main()
