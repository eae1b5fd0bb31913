"""Does an imported smolGPT model write what smolGPT's own code writes? Runs both, side by side.

    python scripts/check_smolgpt.py PATH-TO-A-CHECKOUT-OF-SMOLGPT

Trains small models with that code, on the built-in corpus and a SentencePiece model of it: with
learned positions and with its rotary, forward and with the words of each story reversed. Saves
them as its `train.py` does, imports them, and compares greedy texts with its `sample.py`, which is
run as it is (`--top_k 1`, float32). Needs torch and sentencepiece; takes 20 minutes.
"""

import argparse
import contextlib
import io
import re
import runpy
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import backgpt
from backgpt.convert import import_model
from backgpt.corpus import stories
from backgpt.errors import MissingExtraError
from backgpt.order import ModelIds, ReadingIds, reversed_words
from backgpt.sampling import Sampling

VOCAB_SIZE = 1024
SHAPE = {"n_layer": 4, "n_head": 4, "n_embed": 128, "block_size": 256, "vocab_size": VOCAB_SIZE}
N_PROMPTS = 20
NEW_TOKENS = 120
SENTENCE_END = r"(?<=[.!?\"])\s+"
GREEDY = Sampling(top_k=1, repetition_penalty=1.0, dry_multiplier=0.0)


def main() -> None:
    """Print a line for each model; exit with 1 if a text differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="a folder with smolGPT's model.py, sample.py")
    parser.add_argument("--steps", type=int, default=800)
    given = parser.parse_args()
    for name in ("torch", "sentencepiece"):
        if find_spec(name) is None:
            sys.exit(f"check_smolgpt: {MissingExtraError('this comparison', 'dev', name)}")
    checkout = given.checkout.resolve()
    sys.path.insert(0, str(checkout))
    import model as theirs  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(folder)
        results = [
            check(
                theirs,
                checkout,
                tokenizer,
                folder / f"{'rotary' if rotary else 'learned'}-{'words' if words else 'forward'}",
                rotary=rotary,
                words=words,
                steps=given.steps,
            )
            for rotary in (False, True)
            for words in (False, True)
        ]
    sys.exit(0 if all(results) else 1)


def train_tokenizer(folder: Path) -> Path:
    """Train a SentencePiece model with the settings of smolGPT's `preprocess.py`."""
    import sentencepiece

    (folder / "tiny.txt").write_text("\n".join(text.strip() for text in stories()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "tiny.txt"),
        model_prefix=str(folder / "tok"),
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        self_test_sample_size=0,
        input_format="text",
        num_threads=1,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        unk_surface=r" \342\201\207 ",
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return folder / "tok.model"


def check(
    theirs: ModuleType,
    checkout: Path,
    tokenizer: Path,
    folder: Path,
    *,
    rotary: bool,
    words: bool,
    steps: int,
) -> bool:
    """Train, save and import one model; return whether both write the same for all prompts."""
    folder.mkdir()
    loss = train(theirs, tokenizer, folder / "ckpt.pt", rotary=rotary, words=words, steps=steps)
    made = import_model(
        folder / "ckpt.pt",
        folder / "imported",
        direction=None if words else "forward",
        reversed_words=words,
        tokenizer=tokenizer,
    )
    ours = backgpt.load(made.out)
    same = altered = n_tokens = 0
    for text in prompts(words=words):
        prompt = reversed_words(text) if words else text
        expected = their_text(checkout, folder / "ckpt.pt", tokenizer, prompt)
        given: dict[str, Any] = {"ending" if words else "opening": text}
        [written] = ours.write(**given, max_new_tokens=NEW_TOKENS, sampling=GREEDY)
        found = written.text
        n_tokens += written.n_tokens
        if words:
            if not expected.startswith(f"{prompt} "):
                # It goes on inside the word that it was given, which `write` never does.
                found = likeliest(ours, text)
                altered += expected == found
                continue
            # Of a text that was cut off ours leaves out the last word, which may not be whole.
            whole = expected.split()[: -1 if written.finish_reason == "length" else None]
            expected = reversed_words(" ".join(whole))
        same += expected == found
        if expected != found:
            print(f"  theirs: {expected!r}\n  ours:   {found!r}")
    inside = f", {altered} go on inside the given word, and so does the engine" if altered else ""
    print(
        f"{folder.name}: loss {loss:.2f} after {steps} steps; {same} of {N_PROMPTS} texts the same"
        f"{inside}; {n_tokens} tokens",
        flush=True,
    )
    return same + altered == N_PROMPTS


def likeliest(model: backgpt.Model, ending: str) -> str:
    """Return what the engine alone writes, in model order: the likeliest id each time."""
    ids = model.prompt(ending).ids
    n_given, stops = len(ids), model.prompt(ending).stops
    [row], logits = model.engine.prefill(ids)
    while len(ids) - n_given < NEW_TOKENS and (best := int(logits.argmax())) not in stops:
        ids = ModelIds(np.append(ids, best))
        [logits] = model.engine.step([row], [best])
    return model.tokenizer.decode(ReadingIds(ids))


def prompts(*, words: bool) -> list[str]:
    """Return the first words, or the last two sentences, of some stories."""
    chosen = stories()[: 50 * N_PROMPTS : 50]
    if words:
        return [" ".join(re.split(SENTENCE_END, text.strip())[-2:]) for text in chosen]
    return [" ".join(text.split()[: 2 + number % 5]) for number, text in enumerate(chosen)]


def train(
    theirs: ModuleType, tokenizer: Path, path: Path, *, rotary: bool, words: bool, steps: int
) -> float:
    """Train a model of smolGPT's and save it as its `train.py` does; return the last loss."""
    import sentencepiece
    import torch
    from config import GPTConfig  # type: ignore[import-not-found]

    torch.manual_seed(1)

    arguments = {**SHAPE, "bias": rotary, "dropout": 0.0}
    model = theirs.GPT(GPTConfig(**arguments, use_rotary=rotary))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    stream: list[int] = []
    for text in stories()[:3000]:
        text = reversed_words(text) if words else text.strip()
        stream += [processor.bos_id(), *processor.encode(text), processor.eos_id()]
    data = torch.tensor(stream[: len(stream) // 256 * 256]).view(-1, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 2 * (1 - step / steps), 1.0)
    )
    loss = torch.zeros(())
    for step in range(steps):
        batch = data[(torch.arange(8) + 8 * step) % len(data)]
        _, loss = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    # Its train.py leaves use_rotary out of what it saves; its sample.py needs it.
    saved = {**arguments, "use_rotary": True} if rotary else arguments
    torch.save(
        {
            "model": {f"_orig_mod.{name}": value for name, value in model.state_dict().items()},
            "model_args": saved,
            "iter_num": steps,
            "best_val_loss": loss.detach(),
        },
        path,
    )
    return float(loss.detach())


def their_text(checkout: Path, checkpoint: Path, tokenizer: Path, prompt: str) -> str:
    """Return what smolGPT's sample.py prints for a prompt, greedy."""
    command = ["sample.py", "--ckpt_path", str(checkpoint), "--tokenizer_path", str(tokenizer)]
    command += ["--prompt", prompt, "--num_samples", "1", "--max_new_tokens", str(NEW_TOKENS)]
    command += ["--top_k", "1", "--temperature", "1", "--device", "cpu", "--dtype", "float32"]
    printed, own = io.StringIO(), sys.argv
    sys.argv = command
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # autocast on a CPU has no float32, and says so
            runpy.run_path(str(checkout / "sample.py"), run_name="__main__")
    finally:
        sys.argv = own
    return printed.getvalue().removesuffix("\n------------------\n")


if __name__ == "__main__":
    main()
