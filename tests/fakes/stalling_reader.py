"""A task that reads a large answer of a model: its beginning, and, when it is told to go on, the rest."""

from __future__ import annotations

from typing import Final

#: Files in its workspace that let it go on: with the answer, and to its end.
REST, END = "rest", "end"
#: What it prints when it waits for the first of them; for the second it prints the number of bytes it has read.
WAITS: Final = "has begun"
PROGRAM: Final = f"""
import json, os, time, urllib.request

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.02)

asked = {{"model": "claude-haiku-4-5", "stream": True, "max_tokens": 100, "messages": []}}
body = json.dumps(asked).encode()
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body)
request.add_header("x-api-key", os.environ["ANTHROPIC_API_KEY"])
answer = urllib.request.urlopen(request)
size = len(answer.read(1 << 20))
print("{WAITS}", flush=True)
wait_for("{REST}")
while piece := answer.read(1 << 20):
    size += len(piece)
print(size, flush=True)
wait_for("{END}")
"""
#: Bytes of text in the answer, and those that may be on their way while nobody reads: what kernels buffer.
SIZE: Final = 200_000_000
ON_THE_WAY: Final = 40 << 20
#: MiB by which a process on the way may grow over all of it.
GROWTH: Final = 20
