"""Check exported GGUF files in llama.cpp's own server: same ids, same logits, same greedy texts.

    python scripts/check_gguf.py LLAMA_SERVER [--model stories] [--option=--no-repack]

LLAMA_SERVER is the program `llama-server`. Prints what it found; the exit code is 1 if a float32
file gives other ids, or another greedy text, than this project. Needs the extra gguf.
"""

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from backgpt import load
from backgpt.api import Model
from backgpt.corpus import stories
from backgpt.export import read_source
from backgpt.export_gguf import GGUF_TYPES, export_gguf
from backgpt.unreverse import normalized

N_PROBS = 20
SECONDS_TO_START = 60
ALPHABET = (
    "abc ABC 012 .,!?'\"-\n\n\t  they're don't I'll äéßñ €£ Ωλ Привет שלום "
    "مرحبا 中文漢字 ひらカタ 한국어 😀👩‍👩‍👧🏽❤️ e\u0301 \u00a0\u2028\u200b▁"
    " <|end|> <|user|> \x00\x01\x7f ½²Ⅷ ﬁ"
)


class Server:
    """A server of llama.cpp's, and what is asked of it."""

    def __init__(self, port: int) -> None:
        """Say where it listens."""
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def post(self, path: str, **body: Any) -> Any:
        """Return its answer. Raises OSError, or RuntimeError with what it said."""
        data = json.dumps(body)
        self._connection.request("POST", path, data, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {text[:200]}")
        return json.loads(text)

    def ids(self, text: str) -> list[int]:
        """Return the ids that it splits a text into."""
        asked = {"content": text, "add_special": False, "parse_special": False}
        return self.post("/tokenize", **asked)["tokens"]  # type: ignore[no-any-return]

    def greedy(self, prompt: list[int], most: int) -> tuple[list[int], dict[int, float]]:
        """Return the likeliest ids after `prompt`, and log p of some for the first place."""
        answer = self.post(
            "/completion",
            prompt=prompt,
            n_predict=most,
            temperature=0.0,
            n_probs=N_PROBS,
            return_tokens=True,
            cache_prompt=False,
        )
        first = answer["completion_probabilities"][0]["top_logprobs"]
        return answer["tokens"], {one["id"]: one["logprob"] for one in first}


@contextmanager
def serving(program: str, file: Path, options: list[str]) -> Iterator[Server]:
    """Run llama.cpp's server with a file, on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", str(file), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", "0", "-np", "1", "--no-webui", "-fa", "off"]
    command += ["-ctk", "f32", "-ctv", "f32", *options]  # by default it rounds keys and values
    log = file.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        began = time.monotonic()
        while True:
            if process.poll() is not None or time.monotonic() - began > SECONDS_TO_START:
                sys.exit(f"{program} does not serve {file}:\n{log.read_text()[-2000:]}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.2)
        yield Server(port)
    finally:
        process.terminate()
        process.wait()


def strings(count: int) -> Iterator[str]:
    """Yield texts: lines of stories, whole ones, and characters at random."""
    draw = random.Random(1)
    texts = stories()
    for number in range(count):
        if number % 4 == 0:
            yield draw.choice(draw.choice(texts).split("\n"))
        elif number % 40 == 1:
            yield draw.choice(texts)
        else:
            yield "".join(draw.choices(ALPHABET, k=draw.randint(0, 40)))


def endings(count: int) -> list[str]:
    """Return endings, none like another."""
    draw = random.Random(2)
    last = sorted({text.strip().split("\n")[-1].split(". ")[-1] for text in stories()})
    return draw.sample(last, count)


def greedy(model: Model, prompt: list[int], most: int) -> tuple[list[int], Any]:
    """Return our likeliest ids after `prompt`, to the stop id, and log p for the first place."""
    stop = model.language.markers[1]
    rows, logits = model.engine.prefill(np.array(prompt))
    first = logits.reshape(-1).astype(np.float64)
    written: list[int] = []
    most = min(most, model.engine.block_size - len(prompt))
    while len(written) < most and stop not in written:
        written.append(int(logits.reshape(-1).argmax()))
        logits = model.engine.step(rows, written[-1:])
    model.engine.release(rows)
    return written, first - np.logaddexp.reduce(first)


def main() -> int:
    """Run the checks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("server", help="llama.cpp's program llama-server")
    parser.add_argument("--model", default="stories")
    parser.add_argument("--strings", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--option", action="append", default=[], help="one more for the server")
    options = parser.parse_args()

    source, model = read_source(options.model), load(options.model, dtype="float32")
    prompts = [
        model.prompt(text if model.direction == "backward" else None, opening=None).ids.tolist()
        for text in endings(options.prompts)
    ]
    wanted = [greedy(model, prompt, options.tokens) for prompt in prompts]
    n_wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for dtype in GGUF_TYPES:
            file = Path(folder) / f"{dtype}.gguf"
            export_gguf(source, file, dtype=dtype)
            with serving(options.server, file, options.option) as server:
                if dtype == "f32":
                    n_wrong += check_ids(server, model, options.strings)
                n_other = check_texts(server, dtype, prompts, wanted, options.tokens)
                n_wrong += n_other if dtype == "f32" else 0
    return int(n_wrong > 0)


def check_ids(server: Server, model: Model, count: int) -> int:
    """Compare the ids of texts; return how many differ."""
    different = [
        text
        for text in strings(count)
        if server.ids(normalized(text)) != model.tokenizer.encode(text).tolist()
    ]
    print(f"ids: {len(different)} of {count:,} strings differ", *map(repr, different[:3]))
    return len(different)


def check_texts(
    server: Server, dtype: str, prompts: list[list[int]], wanted: list[Any], most: int
) -> int:
    """Compare greedy texts and the likeliest first ids; return how many texts differ."""
    n_other, n_ids, difference = 0, 0, 0.0
    for prompt, (written, logprobs) in zip(prompts, wanted, strict=True):
        found, first = server.greedy(prompt, most)
        n_other += found != written
        n_ids += len(written)
        difference = max(difference, *(abs(p - logprobs[id_]) for id_, p in first.items()))
    print(
        f"{dtype}: {n_other} of {len(prompts)} greedy texts differ ({n_ids:,} ids); the "
        f"{N_PROBS} likeliest first ids by at most {difference:.1e} nats"
    )
    return n_other


if __name__ == "__main__":
    sys.exit(main())
