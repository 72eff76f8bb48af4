"""Calls of the API in a loop, from a process of their own, so that the prover's work does not slow them.

python tools/batches/prober.py URL KEY     until its input ends; then one line of JSON with the seconds of each call
"""

import json
import sys
import threading
import time

import httpx

PAUSE = 0.02


def main() -> None:
    url, key = sys.argv[1:]
    seconds: dict[str, list[float]] = {"live": [], "emails": []}
    ended = threading.Event()

    def probe(name: str) -> None:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
            number = 0
            while not ended.wait(PAUSE):
                began = time.monotonic()
                if name == "live":
                    answer = http.get("/health/live")
                else:
                    body = {"kind": "welcome", "to": f"probe{number}@example.com", "name": "Ada"}
                    answer = http.post("/api/emails", json=body)
                seconds[name].append(time.monotonic() - began)
                answer.raise_for_status()
                number += 1

    threads = [threading.Thread(target=probe, args=(name,)) for name in seconds]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
