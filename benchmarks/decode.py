"""Time generation on a CPU: the native engine against other projects, interleaved in one run.

    python benchmarks/decode.py --peer smolgpt=CHECKOUT --peer llama_cpp=SITE_PACKAGES \\
        --peer llama.cpp=FOLDER_OF_LLAMA_BENCH
    python benchmarks/decode.py --cold MODEL_FOLDER --peer llama_cpp=SITE_PACKAGES [--gguf FILE]

All run a model of one shape with random weights, on the same number of threads. Every contestant
lives in a process of its own and they take turns (A B C A B C ...), so that a busy machine is busy
for all of them; one of them only reads memory: no token can be had faster than the weights are
read. `--cold` times whole processes instead, from start to the end of a story, and says where the
time goes. SITE_PACKAGES is where `llama_cpp` and `gguf` can be imported from.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backgpt.shape import ModelConfig, preset

PROMPT, STORY, LONG_PROMPT = 8, 200, 512  # ids
WIDE_STEPS = 100  # steps of a batch
SINGLE, BATCH_8, BATCH_32, PREFILL = "one stream", "batch 8", "batch 32", "prefill"
BATCHES = {BATCH_8: 8, BATCH_32: 32}
JOBS = (SINGLE, *BATCHES, PREFILL)
OURS = ("int8", "int4", "bfloat16", "float32")
GGUF_TYPES = ("q8_0", "q4_0", "bf16")
READING = "reading memory"

Arrays = dict[str, npt.NDArray[Any]]
Work = Callable[[str], float | None]
"""Does a job and returns its tokens/s (gigabytes/s for reading), or None if it cannot."""


@dataclass(frozen=True)
class Task:
    """What every contestant does: a model's shape, the threads, where the peers are."""

    shape: ModelConfig
    threads: int
    peers: dict[str, str]
    folder: Path

    def weights(self) -> Arrays:
        """Return random weights, the same for everyone, by Hugging Face name."""
        random = np.random.default_rng(0)
        return {
            name: random.standard_normal(shape, dtype=np.float32) * 0.02
            if len(shape) > 1
            else np.ones(shape, dtype=np.float32)
            for name, shape in self.shape.array_shapes().items()
        }

    def ids(self, count: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng(1).integers(16, self.shape.vocab_size, count)


def run_engine(engine: Any, task: Task, job: str) -> float:
    """Do a job through the engine protocol."""
    if job == PREFILL:
        ids = task.ids(LONG_PROMPT)
        start = time.perf_counter()
        rows, _ = engine.prefill(ids)
        rate = len(ids) / (time.perf_counter() - start)
    else:
        batch, steps = (1, STORY) if job == SINGLE else (BATCHES[job], WIDE_STEPS)
        rows, logits = engine.prefill(task.ids(PROMPT), batch)
        chosen = [int(logits.argmax())] * batch
        start = time.perf_counter()
        for _ in range(steps):
            chosen = [int(best) for best in engine.step(rows, chosen).argmax(1)]
        rate = batch * steps / (time.perf_counter() - start)
    engine.release(rows)
    return rate


def native(task: Task, dtype: str) -> Work:
    """The native engine."""
    from backgpt.engine.native_engine import NativeEngine

    engine = NativeEngine(task.shape, task.weights(), dtype=dtype, threads=task.threads)  # type: ignore[arg-type]
    return lambda job: run_engine(engine, task, job)


def torch_engine(task: Task, dtype: str) -> Work:
    """The engine in torch: what runs without the extension."""
    import torch

    from backgpt.engine.torch_engine import TorchEngine
    from backgpt.model import Transformer

    torch.set_num_threads(task.threads)
    model = Transformer(task.shape)
    model.load_arrays(task.weights())
    engine = TorchEngine(model.to(getattr(torch, dtype)))
    return lambda job: run_engine(engine, task, job)


def reading(task: Task, dtype: str) -> Work:
    """Read as many bytes as the weights have in `dtype`, over and over: gigabytes/s."""
    from backgpt.engine.native_engine import NativeEngine

    size = NativeEngine(task.shape, task.weights(), dtype=dtype, threads=1).weight_bytes  # type: ignore[arg-type]
    parts = np.array_split(np.ones(size // 8, dtype=np.int64), task.threads)
    pool = ThreadPoolExecutor(task.threads)

    def work(job: str) -> float | None:
        if job != SINGLE:
            return None
        start = time.perf_counter()
        for _ in range(20):
            list(pool.map(np.bitwise_xor.reduce, parts))
        return 20 * size / (time.perf_counter() - start) / 1e9

    return work


def smolgpt(task: Task, _: str) -> Work:
    """smolGPT's own loop: the whole text again for every token."""
    import torch

    sys.path.insert(0, task.peers["smolgpt"])
    torch.set_num_threads(task.threads)
    shape = importlib.import_module("config").GPTConfig(
        block_size=task.shape.block_size,
        vocab_size=task.shape.vocab_size,
        n_layer=task.shape.n_layer,
        n_head=task.shape.n_head,
        n_embed=task.shape.n_embd,
    )
    model = importlib.import_module("model").GPT(shape).eval()
    ids = torch.from_numpy(task.ids(PROMPT))[None]

    def work(job: str) -> float | None:
        if job != SINGLE:
            return None
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, STORY)
        return STORY / (time.perf_counter() - start)

    return work


def llama_cpp(task: Task, kind: str) -> Work:
    """llama-cpp-python, token by token, greedy."""
    sys.path.append(task.peers["llama_cpp"])
    library = importlib.import_module("llama_cpp")
    defaults = library.llama_cpp.llama_model_default_params

    def without_repacking() -> Any:  # which stops with an illegal instruction on some machines
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    library.llama_cpp.llama_model_default_params = without_repacking
    model = library.Llama(
        str(gguf_file(task, kind)),
        n_ctx=task.shape.block_size,
        n_threads=task.threads,
        n_threads_batch=task.threads,
        verbose=False,
    )

    def work(job: str) -> float | None:
        if job != SINGLE:
            return None
        model.reset()
        model.eval(task.ids(PROMPT).tolist())
        start = time.perf_counter()
        for _ in range(STORY):
            model.eval([model.sample(temp=0.0)])
        return STORY / (time.perf_counter() - start)

    return work


def llama_bench(task: Task, kind: str) -> Work:
    """llama.cpp's own benchmarks, which leave sampling out."""
    folder, model = Path(task.peers["llama.cpp"]), str(gguf_file(task, kind))
    threads = str(task.threads)

    def batch(size: int) -> float | None:
        command = [str(folder / "llama-batched-bench"), "-m", model, "-t", threads]
        command += ["-c", "8192", "-npp", str(PROMPT), "-ntg", str(WIDE_STEPS)]
        command += ["-npl", str(size), "--output-format", "jsonl"]
        # Its products with repacked weights stop with an illegal instruction on some machines.
        text = _output(command) or _output([*command, "--no-repack"])
        lines = [line for line in (text or "").splitlines() if line.startswith("{")]
        return float(json.loads(lines[0])["speed_tg"]) if lines else None

    def work(job: str) -> float | None:
        if job in BATCHES:
            return batch(BATCHES[job])
        counts = ["-p", str(LONG_PROMPT), "-n", "0"] if job == PREFILL else ["-p", "0", "-n", "200"]
        command = [str(folder / "llama-bench"), "-m", model, "-t", threads, "-r", "1", *counts]
        command += ["-o", "json"]
        text = _output(command) or _output([*command, "--repack", "0"])
        return float(json.loads(text)[0]["avg_ts"]) if text else None

    return work


CONTESTANTS: dict[str, Callable[[Task, str], Work]] = {
    "backgpt": native,
    READING: reading,
    "backgpt torch": torch_engine,
    "llama-cpp-python": llama_cpp,
    "llama.cpp": llama_bench,
    "smolgpt": smolgpt,
}


def contestants(peers: dict[str, str]) -> list[tuple[str, str]]:
    """Return who takes part, as (contestant, variant)."""
    names = [("backgpt", dtype) for dtype in OURS]
    names += [(READING, dtype) for dtype in OURS]
    names += [("backgpt torch", "float32"), ("backgpt torch", "bfloat16")]
    if "llama_cpp" in peers:
        names += [("llama-cpp-python", "q8_0")]
        if "llama.cpp" in peers:
            names += [("llama.cpp", kind) for kind in GGUF_TYPES]
    if "smolgpt" in peers:
        names += [("smolgpt", "float32")]
    return names


def gguf_file(task: Task, kind: str) -> Path:
    """Write the random model as a GGUF file of type `kind`, once, and return its path.

    Its vocabulary is made up: 256 bytes and names of no meaning.
    """
    path = task.folder / f"{kind}.gguf"
    if path.exists():
        return path
    sys.path.append(task.peers["llama_cpp"])
    gguf = importlib.import_module("gguf")
    shape = task.shape
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "qwen3")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.block_size)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_kv_head)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(_made_up_tokens(shape.vocab_size))
    writer.add_token_types([1] * shape.vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, shape.n_layer)
    for name, array in task.weights().items():
        data, number_type = array, gguf.GGMLQuantizationType.F32
        if array.ndim > 1:
            number_type = gguf.GGMLQuantizationType[kind.upper()]
            data = gguf.quants.quantize(array, number_type)
        tensor = names.get_name(name, (".weight",))
        writer.add_tensor(tensor, data, raw_dtype=number_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_suffix(".part").rename(path)


def _made_up_tokens(count: int) -> list[str]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [chr(byte) for byte in shown] + [chr(256 + n) for n in range(len(hidden))]
    return (letters + [f"token{n}" for n in range(count)])[:count]


def _output(command: list[str]) -> str | None:
    """Return what a command prints, or None if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    return None if result.returncode else result.stdout


# ---- taking turns -------------------------------------------------------------------------------


def serve(connection: Connection, name: str, variant: str, task: Task) -> None:
    """Run in a contestant's process: do each job that comes, until None comes."""
    warnings.simplefilter("ignore")
    try:
        work = CONTESTANTS[name](task, variant)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    with suppress(EOFError):  # the race is over
        while (job := connection.recv()) is not None:
            connection.send(work(job))


def race(task: Task, names: list[tuple[str, str]], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Let all take turns; return the rates of every job, by contestant and job.

    The first round warms up and is not counted; the slowest contestant joins in few rounds.
    """
    context = multiprocessing.get_context("spawn")
    seats: dict[tuple[str, str], Connection] = {}
    for name in names:
        seats[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, *name, task), daemon=True).start()
        theirs.close()  # so that a contestant that dies is noticed
        answer = _turn(seats[name], SINGLE)
        if isinstance(answer, str):
            print(f"{' '.join(name)} cannot take part: {answer}", file=sys.stderr)
            del seats[name]
        print(f"{' '.join(name)}: {answer}", file=sys.stderr)
    rates: dict[str, dict[str, Any]] = {" ".join(name): {} for name in seats}
    for number in range(rounds):
        for job in JOBS:
            for name, seat in seats.items():
                if name[0] == "smolgpt" and number % 3:
                    continue
                rate = _turn(seat, job)
                assert not isinstance(rate, str), f"{name}: {rate}"
                if rate is not None:
                    rates[" ".join(name)].setdefault(job, []).append(rate)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for seat in seats.values():
        seat.send(None)
    return rates


def _turn(seat: Connection, job: str) -> float | str | None:
    try:
        seat.send(job)
        answer: float | str | None = seat.recv()
    except (EOFError, OSError):
        return "its process ended"
    return answer


def report(rates: dict[str, dict[str, Any]], task: Task) -> str:
    """Return medians, with the range of the single stream, and the share of the floor."""
    from backgpt.engine.native_engine import NativeEngine

    lines = [
        "| tokens/s | one stream (range) | floor | share of it | batch 8 | batch 32 | prefill |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, jobs in rates.items():
        if name.startswith(READING):
            continue
        single = jobs.get(SINGLE, [0.0])
        floor = share = ""
        project, _, dtype = name.partition(" ")
        read = rates.get(f"{READING} {dtype}")
        if project == "backgpt" and read:
            size = NativeEngine(task.shape, task.weights(), dtype=dtype).weight_bytes  # type: ignore[arg-type]
            tokens = statistics.median(read[SINGLE]) * 1e9 / size
            floor = f"{tokens:,.0f}"
            share = f"{statistics.median(single) / tokens:.0%}"
        wide = [f"{statistics.median(jobs[job]):,.0f}" if job in jobs else "" for job in JOBS[1:]]
        span = f"{statistics.median(single):,.0f} ({min(single):,.0f}-{max(single):,.0f})"
        lines.append(f"| {name} | {span} | {floor} | {share} | {' | '.join(wide)} |")
    for name, jobs in rates.items():
        if name.startswith(READING):
            values = jobs[SINGLE]
            lines.append(
                f"\n{name} as large as the {name.split()[-1]} weights: "
                f"{statistics.median(values):.1f} GB/s ({min(values):.1f}-{max(values):.1f})"
            )
    return "\n".join(lines)


# ---- whole processes ----------------------------------------------------------------------------

COLD_OURS = """
import json, sys, time
began = float(sys.argv[1]); marks = {"start": time.time() - began}
def mark(name, since): marks[name] = time.time() - since; return time.time()
from pathlib import Path
from backgpt.model_folder import read_model
from backgpt.engine.native_engine import NativeEngine
from backgpt.generate import Writer
from backgpt.language import Language
from backgpt.running import Job, Running
from backgpt.sampling import Sampling
at = mark("imports", began + marks["start"])
folder = read_model(Path(sys.argv[2]), dequantize=False)
at = mark("read files", at)
engine = NativeEngine(folder.config, folder.weights, dtype="int8", threads=int(sys.argv[3]))
at = mark("pack weights", at)
language = Language(folder.tokenizer, folder.direction, folder.unit)
prompt = language.prompt("The end.", at_edge=True)
writer = Writer(language, prompt)
count = 0
running = Running(engine)
running.add(Job(language, prompt, sampling=Sampling(), max_new_tokens=200, seed=1))
for drawn in running.steps():
    writer.push(drawn.id_)
    count += 1
    if count == 1:
        at = mark("first token", at); marks["until first text"] = at - began
mark("other tokens", at)
marks["tokens"] = count
print(json.dumps(marks))
"""
COLD_LLAMA = """
import json, sys, time
began = float(sys.argv[1]); marks = {"start": time.time() - began}
def mark(name, since): marks[name] = time.time() - since; return time.time()
sys.path.append(sys.argv[4])
import llama_cpp
from llama_cpp import Llama
defaults = llama_cpp.llama_cpp.llama_model_default_params
def without_repacking():
    parameters = defaults()
    parameters.use_extra_bufts = False
    return parameters
llama_cpp.llama_cpp.llama_model_default_params = without_repacking
at = mark("imports", began + marks["start"])
model = Llama(sys.argv[2], n_ctx=1024, n_threads=int(sys.argv[3]), verbose=False)
at = mark("read files", at)
count = 0
for piece in model.create_completion("The end.", max_tokens=200, temperature=0.8, min_p=0.05,
                                     top_k=0, top_p=1.0, repeat_penalty=1.0, seed=1, stream=True):
    count += 1
    if count == 1:
        at = mark("first token", at); marks["until first text"] = at - began
mark("other tokens", at)
marks["tokens"] = count
print(json.dumps(marks))
"""


def cold(task: Task, model: str, gguf: str | None, *, rounds: int) -> str:
    """Time whole processes in turns; return the medians of their parts, in milliseconds."""
    threads = str(task.threads)
    programs = {"backgpt int8": [COLD_OURS, model, threads]}
    if "llama_cpp" in task.peers:
        file = gguf or str(gguf_file(task, "q8_0"))
        programs["llama-cpp-python"] = [COLD_LLAMA, file, threads, task.peers["llama_cpp"]]
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, (code, path, *others) in programs.items():
            began = time.time()
            command = [sys.executable, "-c", code, str(began), path, *others]
            marks = json.loads(subprocess.check_output(command, text=True))
            parts[name].append({**marks, "whole process": time.time() - began})
        parts.setdefault("backgpt sample", []).append(_command(model, threads))
    lines = []
    for name, times in parts.items():
        medians = {key: statistics.median(t[key] for t in times[1:]) for key in times[0]}
        tokens = medians.pop("tokens")
        split = ", ".join(f"{key} {1000 * value:.0f}" for key, value in medians.items())
        lines.append(f"{name}, {tokens:.0f} tokens, milliseconds: {split}")
    return "\n".join(lines)


def _command(model: str, threads: str) -> dict[str, float]:
    """Return how long the command line takes for the same story, from start to end."""
    given = ["--model", model, "--ending", "The end.", "--seed", "1", "--max-new-tokens", "200"]
    command = [sys.executable, "-m", "backgpt", "sample", *given, "--json", "--threads", threads]
    began = time.time()
    story = json.loads(subprocess.check_output(command, text=True))
    return {"tokens": story["n_tokens"], "whole process": time.time() - began}


def describe(task: Task, rounds: int) -> str:
    """Return one line on hardware and size."""
    shape = task.shape
    hardware = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        models = [line for line in cpu_info.read_text().splitlines() if "model name" in line]
        hardware = models[0].partition(":")[2].strip() if models else hardware
    return (
        f"{hardware}, {task.threads} threads; {shape.n_layer} layers, {shape.n_head} heads, "
        f"width {shape.n_embd}, ffn {shape.intermediate_size}, vocabulary {shape.vocab_size}; "
        f"{STORY} tokens after {PROMPT}, prefill {LONG_PROMPT}; medians of {rounds} rounds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--preset", default="seed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--only", help="contestants such as 'backgpt int8', separated by semicolons"
    )
    parser.add_argument(
        "--cold", metavar="MODEL", help="time whole processes with this model folder"
    )
    parser.add_argument("--gguf", help="with --cold: the file for llama-cpp-python")
    options = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in options.peer)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(preset(options.preset), options.threads, peers, Path(folder))
        print(describe(task, options.rounds), end="\n\n")
        if options.cold:
            print(cold(task, options.cold, options.gguf, rounds=options.rounds))
            return
        names = contestants(peers)
        if options.only:
            wanted = options.only.split(";")
            names = [name for name in names if " ".join(name) in wanted]
        print(report(race(task, names, rounds=options.rounds), task))


if __name__ == "__main__":
    main()
