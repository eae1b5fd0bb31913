"""Make the folders that `gpu_run.sh go` needs on the other machine, each small enough to send.

    python scripts/gpu/pack.py DATA OUT --tokenizer tokenizer.json --peer smolgpt=PATH

DATA has the layout of scripts/base_corpus.py. Texts are tokenized here, once, in OUT-datasets.
OUT/call-1, call-2, ... each hold the code, the packages missing there, and their share of the data;
what the first stages need is in the first, and so are models to go on with: one that came home
(--weights MODEL), or one that stands for a stage that is done (--weights STAGE=MODEL). Where the
checkout travels too, --beside-checkout counts it and leaves the code out, which is then taken from
there.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import archive
from plan import GIVEN, PLAN, PREPARED, PROGRESS, ROOT, Plan, copy_code, read_plan

PYTHON, PLATFORMS = (
    "3.12",
    ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
)
MIB = 1 << 20


def main() -> None:
    """Make the folders and print the size of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="made anew; keep it out of version control")
    parser.add_argument("--plan", type=Path, default=Path(__file__).parent / "stages.toml")
    parser.add_argument("--tokenizer", type=Path, help="else one is trained on TinyStories")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--weights", action="append", default=[], metavar="[STAGE=]MODEL")
    parser.add_argument("--calls", type=int, default=2, help="folders to share the data among")
    parser.add_argument("--call", type=int, help="make only this one")
    parser.add_argument("--no-wheels", action="store_true", help="nothing is missing there")
    parser.add_argument(
        "--beside-checkout", action="store_true", help="it travels as well: pack no code"
    )
    given = parser.parse_args()
    plan = read_plan(given.plan)

    with tempfile.TemporaryDirectory() as temporary:
        always = Path(temporary)
        _pack_always(always, plan, given)
        first = {
            name: content
            for model in given.weights
            for name, content in weights_of(plan, model).items()
        }
        shares = shared_out(plan, given.data, _archives(plan, given), given.calls, first)
        if given.call is None:
            shutil.rmtree(given.out, ignore_errors=True)
        for number, share in enumerate(shares, start=1):
            if given.call in (None, number):
                folder = given.out / f"call-{number}"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(always, folder)
                for name, content in share.items():
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
                _check_size(folder, plan, beside=given.beside_checkout)


def shared_out(
    plan: Plan, data: Path, archives: dict[str, Path], calls: int, besides: dict[str, bytes]
) -> list[dict[str, bytes]]:
    """Return what each call carries, by path there: `besides` and the first dataset in the first.

    Conversations go as the files they are, all else in pieces. Exits if a file is missing.
    """
    first, *others = archives
    whole = archive.cut(archives[first], first, [0])
    shares: list[dict[str, bytes]] = [{} for _ in range(calls)]
    shares[0] = {f"{PREPARED}/{piece}": content for piece, (_, content) in whole.items()} | besides
    chats = [file for name in plan.data if name not in archives for file in plan.files(name)]
    found = [find(data, listed) for listed in dict.fromkeys(chats)]
    for file in sorted(found, key=lambda file: -file.stat().st_size):
        share = min(shares, key=lambda share: sum(map(len, share.values())))
        share[f"data/{file.relative_to(data)}"] = file.read_bytes()
    for name in others:
        filled = [sum(map(len, share.values())) for share in shares]
        for piece, (call, content) in archive.cut(archives[name], name, filled).items():
            shares[call][f"{PREPARED}/{piece}"] = content
    return shares


def _archives(plan: Plan, given: argparse.Namespace) -> dict[str, Path]:
    """Tokenize each dataset of texts, if that is not done; return an archive of each."""
    work = given.out.with_name(given.out.name + "-datasets")
    work.mkdir(parents=True, exist_ok=True)
    archives = {}
    for name, spec in plan.data.items():
        if "chat" not in spec:
            train, valid = (
                [find(given.data, file) for file in spec[k]] for k in ("train", "valid")
            )
            if name == "base":
                corpus = work / "base.jsonl"
                if _is_older(corpus, [*train, ROOT / "scripts" / "base_corpus.py"]):
                    script = str(ROOT / "scripts" / "base_corpus.py")
                    subprocess.run([sys.executable, script, given.data, corpus], check=True)
                train = [corpus]
            held_out = [part for file in valid for part in ("--valid", file)]
            options = [*held_out, "--tokenizer", given.tokenizer, "--out", work / name]
            command = [sys.executable, "-m", "backgpt", "prepare", *train, *options]
            subprocess.run(command, check=True)
            archives[name] = work / f"{name}.tar.xz"
            if _is_older(archives[name], [work / name / "dataset.json"]):
                archive.pack(work / name, archives[name])
    return archives


def _is_older(file: Path, sources: list[Path]) -> bool:
    """Return whether a file is not there or older than what it is made of."""
    if not file.is_file():
        return True
    return file.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def find(data: Path, listed: str) -> Path:
    """Return the file `listed` below `data`, compressed or not. Exits if there is none."""
    for file in (data / f"{listed}.xz", data / listed):
        if file.is_file():
            return file
    sys.exit(f"there is no {data / listed} and no {listed}.xz: give the folder with the data")


def _pack_always(folder: Path, plan: Plan, given: argparse.Namespace) -> None:
    """Put what every call carries into `folder`."""
    if not given.beside_checkout:
        copy_code(folder / "code")
    shutil.copyfile(given.plan, folder / PLAN)
    _pack_tokenizer(folder, given)
    for peer in given.peer:
        name, _, path = peer.partition("=")
        (folder / "peers" / name).mkdir(parents=True)
        for file in Path(path).glob("*.py"):
            shutil.copyfile(file, folder / "peers" / name / file.name)
    if not given.no_wheels:
        _pack_wheels(folder / "wheels", plan.wheels)


def _pack_tokenizer(folder: Path, given: argparse.Namespace) -> None:
    if given.tokenizer is None:
        stories = find(given.data, "tinystories/train.jsonl")
        backgpt = [sys.executable, "-m", "backgpt", "prepare", str(stories), "--out"]
        subprocess.run([*backgpt, str(folder / "tokenized")], check=True)
        given.tokenizer = given.out.with_name(given.out.name + "-tokenizer.json")
        shutil.copyfile(folder / "tokenized" / "tokenizer.json", given.tokenizer)
        shutil.rmtree(folder / "tokenized")
    shutil.copyfile(given.tokenizer, folder / "tokenizer.json")


def weights_of(plan: Plan, given: str) -> dict[str, bytes]:
    """Return the files of a model to begin from or to go on with, where no checkpoint is left.

    `given` is a model that came home and knows its stage, or STAGE=MODEL for one that is done.
    """
    from backgpt.model_folder import read_model, write_model

    stage, is_done, path = given.rpartition("=")
    if is_done:
        progress = {"stage": stage, "step": 0, "share": 1.0}
    elif (Path(path) / PROGRESS).is_file():
        progress = json.loads((Path(path) / PROGRESS).read_text())
    else:
        sys.exit(f"{path} did not come home from a stage: give STAGE={path} for one that is done")
    if progress["stage"] not in {stage.name for stage in plan.stages}:
        sys.exit(f"{given}: the plan has no stage {progress['stage']!r}")
    with tempfile.TemporaryDirectory() as folder:
        write_model(read_model(Path(path)), Path(folder), storage="int8")
        (Path(folder) / PROGRESS).write_text(json.dumps(progress) + "\n")
        place = f"{GIVEN}/{progress['stage']}"
        return {f"{place}/{file.name}": file.read_bytes() for file in Path(folder).iterdir()}


def _pack_wheels(folder: Path, packages: list[str]) -> None:
    """Download the packages that the machine lacks, for its Python, in the pinned versions."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *platforms]
    pins = ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder)]
    if importlib.util.find_spec("pip") is None:
        sys.exit("this Python has no pip to download packages with: set PYTHON, or --no-wheels")
    subprocess.run([*command, "--implementation", "cp", *pins, *packages], check=True)


def _check_size(folder: Path, plan: Plan, *, beside: bool) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    checkout = _checkout_bytes() if beside else 0
    limit = plan.limits["call_mib"]
    print(f"{folder}: {size / MIB:.1f} MiB" + (f" and {checkout / MIB:.1f} beside" * beside))
    if size + checkout > limit * MIB:
        sys.exit(
            f"{folder} is over {limit:.0f} MiB a call: give more --calls, or move built-in weights "
            "aside (gpu_run.sh aside FOLDER)"
        )


def _checkout_bytes() -> int:
    """Return the size of all files of the checkout that version control does not ignore."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main()
