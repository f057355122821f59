"""Measures `examples/forward.rs` against libzmq's `zmq.proxy`, both between the same peers of libzmq.

    cargo build --release -p zmtp --example forward
    python3 examples/forward.py PATH/TO/release/examples/forward

One DEALER keeps so many requests of 200 bytes outstanding, another sends each back; both are written in C, since Python would be most of
what is measured. Needs pyzmq and a C compiler. Rounds take turns. Prints round trips per second and the forwarder's own CPU time for each.
"""

import ctypes.util
import glob
import os
import statistics
import subprocess
import sys
import tempfile

import zmq

SECONDS = float(os.environ.get("SECONDS", 3))
ROUNDS = int(os.environ.get("ROUNDS", 3))

PEER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
/* Declared here, since pyzmq comes without headers. */
extern void *zmq_ctx_new(void), *zmq_socket(void *, int);
extern int zmq_connect(void *, const char *), zmq_proxy(void *, void *, void *);
extern int zmq_send(void *, const void *, size_t, int), zmq_recv(void *, void *, size_t, int);
enum { DEALER = 5 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

int main(int count, char **words) {
    void *socket = zmq_socket(zmq_ctx_new(), DEALER);
    int outstanding = atoi(words[2]);
    char body[256];
    memset(body, 'x', sizeof body);
    zmq_connect(socket, words[1]);
    /* A proxy between a socket and itself sends back what comes. */
    if (!outstanding) return zmq_proxy(socket, socket, NULL);
    for (int sent = 0; sent < outstanding; sent++) zmq_send(socket, body, 200, 0);
    double start = 0, seconds = atof(words[3]), elapsed = 0;
    long done = -5000;
    while (done < 0 || elapsed < seconds) {
        for (int step = 0; step < 50; step++) {
            zmq_recv(socket, body, sizeof body, 0);
            zmq_send(socket, body, 200, 0);
        }
        done += 50;
        if (done == 0) {
            start = now();
            puts("warm");
            fflush(stdout);
        }
        if (done >= 0) elapsed = now() - start;
    }
    printf("%ld %f\n", done, elapsed);
    fflush(stdout);
    _Exit(0);
}
"""


def proxy():
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket in (front, back):
        socket.bind("tcp://127.0.0.1:*")
    print(*(socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (front, back)), flush=True)
    zmq.proxy(front, back)


def compiled(directory):
    bundled = glob.glob(os.path.join(os.path.dirname(os.path.dirname(zmq.__file__)), "pyzmq.libs", "libzmq*"))
    library = bundled[0] if bundled else ctypes.util.find_library("zmq")
    source, program = os.path.join(directory, "peer.c"), os.path.join(directory, "peer")
    with open(source, "w") as file:
        file.write(PEER)
    subprocess.run(["cc", "-O2", source, "-o", program, library, f"-Wl,-rpath,{os.path.dirname(library)}"], check=True)
    return program


def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(peer, command, outstanding):
    forwarder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    front, back = forwarder.stdout.readline().split()
    worker = subprocess.Popen([peer, back, "0"])
    client = subprocess.Popen([peer, front, str(outstanding), str(SECONDS)], stdout=subprocess.PIPE, text=True)
    try:
        client.stdout.readline()
        before = cpu(forwarder.pid)
        count, elapsed = client.stdout.readline().split()
        return int(count) / float(elapsed), (cpu(forwarder.pid) - before) / int(count) * 1e6
    finally:
        for process in (client, worker, forwarder):
            process.kill()
            process.wait()


def main():
    kinds = {
        "libzmq zmq.proxy": [sys.executable, __file__, "proxy"],
        "zmtp": [sys.argv[1]],
        "zmtp, one thread": [sys.argv[1], "one-thread"],
    }
    with tempfile.TemporaryDirectory() as directory:
        peer = compiled(directory)
        for outstanding in (1, 64, 512):
            results = {kind: [] for kind in kinds}
            for _ in range(ROUNDS):
                for kind, command in kinds.items():
                    results[kind].append(measure(peer, command, outstanding))
            base = statistics.median(rate for rate, _ in results["libzmq zmq.proxy"])
            for kind, rounds in results.items():
                rate, used = (statistics.median(values) for values in zip(*rounds))
                print(f"{outstanding:3} outstanding  {kind:18} {rate:9.0f}/s  x {rate / base:.2f}  {used:6.2f} us of CPU each", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "proxy":
        proxy()
    else:
        main()
