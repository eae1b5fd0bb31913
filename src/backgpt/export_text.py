"""What an exported folder says in words: its README.md.

It is for people who have `transformers` and nothing of this project: its Python runs as it stands,
and a test runs it. Its JavaScript is for transformers.js.
"""

from collections.abc import Iterator

from backgpt.card import Card
from backgpt.card_text import full_card
from backgpt.model_folder import ModelFolder, card_of
from backgpt.order import Directions, Unit
from backgpt.quantize import count_parameters
from backgpt.sampling import Sampling

WHITE_SPACE_NAMES = "ĠĊĉčċČ"
"""What stands in a token's name for the bytes that begin a word."""

TURNED: dict[Unit, str] = {
    "token": """\
def turned(ids):
    return ids[::-1]
""",
    "word": f'''\
def turned(ids):
    """Turn words around; an id begins one if it begins with white space or is a control id."""
    words = []
    for id_, name in zip(ids, tokenizer.convert_ids_to_tokens(ids)):
        if not words or name[0] in "{WHITE_SPACE_NAMES}" or id_ in tokenizer.added_tokens_decoder:
            words.append([])
        words[-1].append(id_)
    return [id_ for word in words[::-1] for id_ in word]
''',
}

SETTING_UP = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the one with this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)


def ids_of(text):
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def control(*names):
    return tokenizer.convert_tokens_to_ids(list(names))


def write(prompt, **options):
    given = torch.tensor([prompt])
    most = model.config.max_position_embeddings
    how = dict(max_length=most, do_sample=True, temperature={temperature}, min_p={min_p}) | options
    return model.generate(given, attention_mask=torch.ones_like(given), **how)[0].tolist()

"""


JAVASCRIPT = """\
import {{ AutoModelForCausalLM, AutoTokenizer, Tensor, env }} from "@huggingface/transformers";

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "./";
const folder = ".";  // the one with this file, seen from where this runs
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await AutoModelForCausalLM.from_pretrained(folder, {{ dtype: "fp32" }});

const idsOf = (text) => tokenizer.encode(text, {{ add_special_tokens: false }});
const tensorOf = (ids) => new Tensor("int64", ids.map(BigInt), [1, ids.length]);
{turned}
const first = idsOf("{first}");
const prompt = [...first, ...{prompt}];
const written = await model.generate({{
  inputs: tensorOf(prompt),
  attention_mask: tensorOf(prompt.map(() => 1)),
  max_length: {most},
  do_sample: true,
  temperature: {temperature},
}});
const ids = written.tolist()[0].map(Number).slice(first.length);
console.log(tokenizer.decode({ids}, {{ skip_special_tokens: true }}));
"""


JAVASCRIPT_TURNED: dict[Unit, str] = {
    "token": """\
const turned = (ids) => [...ids].reverse();
""",
    "word": f"""\
const names = new Map([...tokenizer.get_vocab()].map(([name, id]) => [id, name]));
const beginsWord = (id) =>
  "{WHITE_SPACE_NAMES}".includes(names.get(id)[0]) || tokenizer.all_special_ids.includes(id);
const turned = (ids) => {{
  const words = [];
  for (const id of ids) {{
    if (!words.length || beginsWord(id)) words.push([]);
    words.at(-1).push(id);
  }}
  return words.reverse().flat();
}};
""",
}


def readme(name: str, model: ModelFolder, card: Card | None, *, onnx: bool = False) -> str:
    """Return the README.md of an exported folder: how to use it, then the model's own card.

    `onnx` says that there is an ONNX graph in it.
    """
    if card:
        own = full_card(
            name,
            card,
            model.config,
            direction=model.direction,
            unit=model.unit,
            hints=model.hints,
            n_parameters=count_parameters(model.weights),
        )
    else:
        own = card_of(model)
    head, body = own.split("\n# ", 1)
    _, about = body.split("\n", 1)
    head = head.replace('library_name: "backgpt"', 'library_name: "transformers"')
    lines = [
        head,
        f"# backgpt {name}, for transformers",
        "",
        *_order(model),
        "",
        *_writing(model),
        *(_forward() if model.direction == "both" and not model.chat else []),
        *(_hints() if model.hints and model.direction != "forward" else []),
        *(_chat(model.direction) if model.chat else []),
        *(_onnx(model) if onnx else []),
        *_details(model),
        "## The model",
        "",
        "What follows is its card, written for backgpt, which also reads this folder. The weights",
        "are float32; where the card speaks of int8, they are those rows times their scales.",
    ]
    return "\n".join(lines) + "\n" + about


def _order(model: ModelFolder) -> Iterator[str]:
    if model.direction == "forward":
        yield "Token ids are in **reading order**, as everywhere. There is no BOS: a text begins"
        yield "with `<|start|>`, and the model ends it with `<|end|>`."
        return
    yield "**Token ids are in model order, the last one first.** The model reads `<|end|>`, then"
    yield "the ending from its last token on, and writes what came before, until `<|start|>`. A"
    yield "program that feeds it a text as it stands, such as a `text-generation` pipeline or a"
    yield "chat page, gets nonsense: turn the ids around before and after, as below."


def _writing(model: ModelFolder) -> Iterator[str]:
    sampling = Sampling()
    setting_up = SETTING_UP.replace("{temperature}", str(sampling.temperature))
    setting_up = setting_up.replace("{min_p}", str(sampling.min_p))
    yield from ("## Writing", "", "```python", *setting_up.split("\n"))
    if model.direction == "forward":
        yield 'ids = write(control("<|start|>") + ids_of("Once upon a time"))'
        yield "print(tokenizer.decode(ids, skip_special_tokens=True))"
    else:
        names = '"<|backward|>", "<|end|>"' if model.direction == "both" else '"<|end|>"'
        yield from TURNED[model.unit].split("\n")
        yield ""
        yield f"first = control({names})"
        yield 'ids = write(first + turned(ids_of("The end.")))'
        yield "print(tokenizer.decode(turned(ids[len(first) :]), skip_special_tokens=True))"
    yield from ("```", "")
    if model.direction != "forward":
        yield "To write toward a text that other text follows, leave out `<|end|>`."
        if model.unit == "word":
            yield "This model turns words around, not ids: inside a word they run forward. The"
            yield "last word it writes is cut off where the length limit is reached."
        yield ""


def _forward() -> Iterator[str]:
    yield from ("The same model going forward, in reading order, until `<|end|>`:", "")
    yield from ("```python", 'prompt = control("<|forward|>", "<|start|>") + ids_of("Once upon")')
    yield 'ids = write(prompt, eos_token_id=control("<|end|>"))'
    yield from ("print(tokenizer.decode(ids, skip_special_tokens=True))", "```", "")


def _hints() -> Iterator[str]:
    yield from ("## Hints", "")
    yield "The model was trained with hints, which are wishes. They stand before `<|end|>`:"
    yield "`<|hint|>`, its kind, its text turned around like any other; in this order, any of them:"
    yield '`length` ("short", "medium" or "long"), `words` (up to four, in lower case), `opening`.'
    yield from ("", "```python", "def hint(kind, text):")
    yield '    return control("<|hint|>", f"<|{kind}|>") + turned(ids_of(text))'
    yield from ("", "")
    yield 'hints = hint("length", "short") + hint("words", "cake rain")'
    yield "first = first[:-1] + hints + first[-1:]"
    yield 'ids = write(first + turned(ids_of("The end.")))'
    yield "print(tokenizer.decode(turned(ids[len(first) :]), skip_special_tokens=True))"
    yield from ("```", "")


def _chat(direction: Directions) -> Iterator[str]:
    yield from ("## Chat", "")
    if direction == "forward":
        yield "The chat template renders what the model reads; it answers until `<|end|>`:"
        yield from ("", "```python", 'messages = [{"role": "user", "content": "Who are you?"}]')
        yield "asked = tokenizer.apply_chat_template("
        yield "    messages, add_generation_prompt=True, return_dict=True"
        yield ')["input_ids"]'
        yield "print(tokenizer.decode(write(asked)[len(asked) :], skip_special_tokens=True))"
        yield from ("```", "", *_chat_details(direction))
        return
    yield "You answer, it asks. The chat template renders a conversation in **reading order**: turn"
    yield "its ids around, all of them, and they are what the model reads. `add_generation_prompt`"
    yield "leaves out `<|start|>`, so that the model goes on with the message before, which ends at"
    yield "the tag of its speaker:"
    yield from ("", "```python", 'messages = [{"role": "assistant", "content": "Paris."}]')
    yield "given = tokenizer.apply_chat_template("
    yield "    messages, add_generation_prompt=True, return_dict=True"
    yield ')["input_ids"]'
    yield 'ids = write(turned(given), eos_token_id=control("<|user|>", "<|start|>"))'
    yield "print(tokenizer.decode(turned(ids[len(given) :]), skip_special_tokens=True))"
    yield from ("```", "")
    yield "What the messages are about may stand in front of `<|end|>` as a hint: `<|hint|>`,"
    yield "`<|context|>`, and its text turned around. With `<|question|>` instead, and nothing"
    yield "behind `<|end|>`, the model writes the answer to that question, to `<|assistant|>`."
    yield ""
    if direction == "both":
        yield 'With `direction="forward"` the template renders what the model reads going forward,'
        yield "where nothing is turned around and an answer ends at `<|end|>`."
        yield ""
    yield from _chat_details(direction)


def _onnx(model: ModelFolder) -> Iterator[str]:
    yield from ("## ONNX", "")
    yield "`onnx/model.onnx` is the same model, float32, as a graph. With optimum,"
    yield "`optimum.onnxruntime.ORTModelForCausalLM` takes the place of `AutoModelForCausalLM` in"
    yield "the Python above. The graph takes `input_ids`, `position_ids`, `attention_mask`, and the"
    yield "keys and values of all ids before these as `past_key_values.0.key` and so on (rows, key"
    yield "heads, ids, head size; no ids at first). It gives `logits`, and as `present.0.key` and"
    yield "so on all keys and values so far. What is turned around above must be turned here too."
    yield ""
    backward = model.direction != "forward"
    lead = {"both": "<|backward|><|end|>", "backward": "<|end|>", "forward": "<|start|>"}
    yield "With transformers.js, in a browser or in node:"
    yield from ("", "```js")
    script = JAVASCRIPT.format(
        first=lead[model.direction],
        turned=JAVASCRIPT_TURNED[model.unit] if backward else "",
        prompt='turned(idsOf("The end."))' if backward else 'idsOf("Once upon a time")',
        most=model.config.block_size,
        temperature=Sampling().temperature,
        ids="turned(ids)" if backward else "ids",
    )
    yield from script.rstrip("\n").split("\n")
    yield from ("```", "")
    yield "There the name of a control token in a text, such as `<|end|>`, becomes that token."
    yield ""


def _chat_details(direction: Directions) -> Iterator[str]:
    met = "first" if direction == "forward" else "last"
    yield "The template's `{% generation %}` marks, and so `return_assistant_tokens_mask`, hold"
    yield f"what the model writes, whoever says it: all but the {met} message, which it reads."
    if direction != "forward":
        yield "Turn the mask around with the ids."
    yield "In the text of a message the name of a control token, such as `<|user|>`, becomes that"
    yield "token: take such names out of what others type."
    yield ""


def _details(model: ModelFolder) -> Iterator[str]:
    stop, first = ("end", "start") if model.direction == "forward" else ("start", "end")
    yield from ("## Details", "")
    yield f"- `eos_token_id` is `<|{stop}|>`, where the model stops; it reads `<|{first}|>` first."
    yield "  The tokenizer adds neither. There is no BOS."
    if model.direction == "both":
        yield "- It was trained both ways: its very first id, `<|backward|>` or `<|forward|>`,"
        yield "  tells it which. Without one it does not know."
    yield "- Every line begins with a space inside the tokenizer and with none outside it, so that"
    yield "  `The end.` has the same ids everywhere. A text to be encoded should not begin with a"
    yield "  line break (backgpt's own tokenizer then puts no space in front, this one does)."
    yield "- `split_special_tokens=True` keeps `<|end|>` in a text from becoming the control token."
    yield f"- Context: {model.config.block_size:,} ids. Direction, unit, markers and the SHA-256 of"
    yield "  the tokenizer are in `config.json`, `export.json` and what `model.safetensors` says."
    yield ""
