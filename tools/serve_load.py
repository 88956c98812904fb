"""Measure `glip serve` under load: requests per second beside the Detector's own images per second, in turns.

    python tools/serve_load.py [--model glip-nano] [--clients 1 4 16] [--requests 100] [--rounds 7]

Photo-like JPEGs of 640 x 480 pixels and four names. The Detector detects in the same images in this process, by
`Detector.stream`, while the server waits; then the server is asked by so many clients, each over one connection.
Medians over the rounds count. `--random glip_t_c` gives a model of that config random weights.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import measuring
import torch

import glip

NAMES = ["a red house", "a tree", "a car", "the sun"]
BAR = 0.9  # of the Detector's images per second, with four clients


@contextmanager
def server(model: str, options: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A server process: its port and its process id."""
    command = [sys.executable, "-m", "glip", "serve", "--model", model, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = re.search(r"http://127.0.0.1:(\d+)", line := process.stderr.readline())
        assert port, line
        yield int(port[1]), process.pid
    finally:
        process.terminate()
        print(process.stderr.read().strip() or "the server wrote nothing more")
        print(f"the server ended with {process.wait()}")


def ask(port: int, images: Sequence[bytes], count: int) -> list[float]:
    """Seconds of each of ``count`` requests over one connection; an answer that is not 200 is an error."""
    connection, times = http.client.HTTPConnection("127.0.0.1", port, timeout=600), []
    for number in range(count):
        form = [f'--x\r\nContent-Disposition: form-data; name="names"\r\n\r\n{name}\r\n'.encode() for name in NAMES]
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i.jpg"\r\n\r\n'
        body = b"".join([*form, head, images[number % len(images)], b"\r\n--x--\r\n"])
        began = time.perf_counter()
        connection.request("POST", "/detect", body, {"Content-Type": "multipart/form-data; boundary=x"})
        answer = connection.getresponse()
        text = answer.read()
        times.append(time.perf_counter() - began)
        assert answer.status == 200 and "detections" in json.loads(text)["results"][0], text[:500]
    return times


def resident_mb(process: int) -> float:
    """Memory of a process in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="glip-nano")
    parser.add_argument("--random", metavar="CONFIG", help="a config's sizes with random weights, instead of a model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=100, help="of each number of clients in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--server", action="append", default=[], help="an option of glip serve, such as --batch-size=8")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            args.model = f"{folder}/model"
            measuring.random_detector(args.random, (800, 1066)).save_pretrained(args.model)
        images = [file.read_bytes() for file in measuring.write_photos(Path(folder, "images"), 16)]
        detector = glip.Detector.from_pretrained(args.model)
        count = args.requests
        print(f"not a timed test; {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {detector!r}")
        with server(args.model, args.server) as (port, process):
            ask(port, images, 8)
            list(detector.stream(images[:8], NAMES))
            rates: dict[int, list[float]] = {clients: [] for clients in args.clients}
            times: dict[int, list[float]] = {clients: [] for clients in args.clients}
            own, memory = list[float](), resident_mb(process)
            for _ in range(args.rounds):
                for clients in args.clients:
                    began = time.perf_counter()
                    found = sum(1 for _ in detector.stream(images, NAMES))
                    own.append(found / (time.perf_counter() - began))
                    with ThreadPoolExecutor(clients) as pool:
                        shares = [len(range(place, count, clients)) for place in range(clients)]
                        began = time.perf_counter()
                        done = list(pool.map(lambda share: ask(port, images, share), shares))
                        rates[clients].append(count / (time.perf_counter() - began) / own[-1])
                    times[clients] += [one for part in done for one in part]
                report(own, rates, times)
                print(f"memory of the server: {resident_mb(process):.0f} MB, {memory:.0f} MB at first", flush=True)


def report(own: Sequence[float], rates: Mapping[int, list[float]], times: Mapping[int, list[float]]) -> None:
    """Print the figures so far."""
    print(f"the Detector itself: {statistics.median(own):.2f} images/s (from {min(own):.2f} to {max(own):.2f})")
    for clients, spent in times.items():
        middle, slow = (1000 * sorted(spent)[int(share * (len(spent) - 1))] for share in (0.5, 0.99))
        ratio = f"{statistics.median(rates[clients]):.2f} of it (bar {BAR} at 4)"
        print(f"{clients} clients: {ratio}, p50 {middle:.0f} ms, p99 {slow:.0f} ms, {len(spent)} requests, no error")


if __name__ == "__main__":
    main()
