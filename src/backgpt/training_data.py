"""What a run trains on, validates on and samples from, as its settings say.

Either a dataset that `prepare` made, or conversations, encoded with the tokenizer of the model
that is tuned on them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backgpt.batches import Rows, Windows
from backgpt.chat import Template
from backgpt.config import TrainConfig
from backgpt.datasets import Conversation, Tally, find_source, read_conversations
from backgpt.dialogues import Dialogues
from backgpt.errors import ConfigError, DataError
from backgpt.language import Language, Prompt
from backgpt.messages import Message
from backgpt.model_folder import ModelFolder
from backgpt.prepared import sources_of
from backgpt.shape import ModelConfig
from backgpt.shards import open_dataset
from backgpt.tokenizer import Tokenizer

ANSWERS = ("Paris.", "You need flour, eggs, butter and sugar.")
"""What a chat is asked the questions of while it is trained."""


@dataclass(frozen=True)
class TrainingData:
    """The rows of a run. `valid` has those of each language apart, none without a split.

    `valid_bytes` are the bytes of text in one of them, `notes` what a user should know, and
    `sources` where the text is from, as far as it is known.
    """

    tokenizer: Tokenizer
    languages: Sequence[Language]
    shape: ModelConfig
    rows: Rows
    valid: Sequence[tuple[Language, Rows]]
    valid_bytes: Sequence[int]
    prompts: Sequence[Prompt]
    notes: Sequence[str] = ()
    sources: Sequence[str] = ()


def open_training_data(config: TrainConfig, *, init: ModelFolder | None) -> TrainingData:
    """Open what `config` names; `init` is the model that is tuned, without its weights.

    Raises DataError or CorruptFileError if it cannot be read, ConfigError if it does not fit the
    model.
    """
    return _conversations(config, init) if config.chat else _documents(config, init)


def _documents(config: TrainConfig, init: ModelFolder | None) -> TrainingData:
    assert config.data is not None  # TrainConfig sees to it
    dataset = open_dataset(config.data)
    if init is not None and init.tokenizer.sha256 != dataset.tokenizer.sha256:
        raise ConfigError(
            f"{config.init} has another tokenizer than {config.data}: prepare the data with that "
            "model's tokenizer.json (--tokenizer)"
        )
    if config.hints and not dataset.tokenizer.is_own:
        raise ConfigError(
            f"hints = {config.hints}: the tokenizer of {config.data} is another project's and has "
            "no control ids for them: leave hints out"
        )
    languages = Language.all_of(dataset.tokenizer, config.direction, config.unit)
    shape = config.shape(dataset.tokenizer.vocab_size, of_init=init.config if init else None)
    rows = Windows(dataset.train, languages, block_size=shape.block_size)
    notes = []
    if config.hints and not rows.n_whole:
        notes.append(f"no document fits into {shape.block_size} ids: none gets hints")
    valid = [
        (language, Windows(dataset.valid, [language], block_size=shape.block_size))
        for language in (languages if dataset.valid else ())
    ]
    main, endings = languages[0], config.sample_endings
    given = endings if main.direction == "backward" else ("",) * len(endings)
    return TrainingData(
        tokenizer=dataset.tokenizer,
        languages=languages,
        shape=shape,
        rows=rows,
        valid=valid,
        valid_bytes=[sum(shard.text_bytes for shard in dataset.valid)] * len(valid),
        prompts=[main.prompt(text, at_edge=True) for text in given],
        notes=notes,
        sources=sources_of(config.data),
    )


def _conversations(config: TrainConfig, init: ModelFolder | None) -> TrainingData:
    assert init is not None  # TrainConfig sees to it
    tokenizer = init.tokenizer
    languages = Language.all_of(tokenizer, config.direction, config.unit)
    shape = config.shape(tokenizer.vocab_size, of_init=init.config)
    tally = Tally()
    rows = Dialogues(_read(config.chat, tally), languages, block_size=shape.block_size)
    held_out = list(_read(config.chat_valid, tally))
    valid = [
        (language, Dialogues(held_out, [language], block_size=shape.block_size))
        for language in (languages if held_out else ())
    ]
    template = Template(languages[0])
    prompts = [
        template.reply(answer)
        if languages[0].direction == "forward"
        else template.before([Message("assistant", answer)])
        for answer in ANSWERS
    ]
    return TrainingData(
        tokenizer=tokenizer,
        languages=languages,
        shape=shape,
        rows=rows,
        valid=valid,
        valid_bytes=[dialogues.n_bytes for _, dialogues in valid],
        prompts=prompts,
        notes=[rows.summary, *_skipped(tally)],
        sources=config.chat,
    )


def _skipped(tally: Tally) -> Iterator[str]:
    for count, what in (
        (tally.empty, "of fewer than two messages that say something"),
        (tally.no_turns, "in which users and assistants do not take turns"),
    ):
        if count:
            yield f"{count:,} records skipped, {what}"


def _read(sources: Sequence[str], tally: Tally) -> Iterator[Conversation]:
    """Yield the conversations of several sources. Raises DataError for one without any."""
    for spec in sources:
        found = False
        for path in find_source(spec).files:
            for conversation in read_conversations(path, tally=tally):
                found = True
                yield conversation
        if not found:
            raise DataError(f"{spec} holds no conversation of two messages or more")
