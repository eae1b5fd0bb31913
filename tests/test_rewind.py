"""Chat through the public face, with a model that knows nothing: form, not sense."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from backgpt.api import Model
from backgpt.chat import Template
from backgpt.engine import FloatArray
from backgpt.engine.torch_engine import TorchEngine
from backgpt.errors import UsageError
from backgpt.generate import Text
from backgpt.language import Language
from backgpt.messages import Message
from backgpt.model import Transformer
from backgpt.order import IdArray, Unit
from backgpt.rewind import Rewinding
from backgpt.sampling import Sampling
from backgpt.shape import preset
from backgpt.tokenizer import SPECIAL_TOKENS, Tokenizer

FREE = Sampling(temperature=1.0, min_p=0.0)
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 256, "intermediate_size": 96}
MARKER = re.compile(r"<\|\w+\|>")


class Terse(TorchEngine):
    """Knows nothing, but likes to end: markers and tags are `bias` likelier than they should be."""

    bias = 2.8

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        rows, logits = super().prefill(ids, copies)
        return rows, self._biased(logits)

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        return self._biased(super().step(rows, ids))

    def _biased(self, logits: FloatArray) -> FloatArray:
        logits = logits.copy()
        logits[..., : len(SPECIAL_TOKENS)] += self.bias
        return logits


def model_of(tokenizer: Tokenizer, unit: Unit = "token", *, bias: float = Terse.bias) -> Model:
    """Return a random model."""
    config = preset("nano", tokenizer.vocab_size, **SHAPE)
    engine = Terse(Transformer(config, generator=torch.Generator().manual_seed(3)))
    engine.bias = bias
    return Model(config, Language(tokenizer, "backward", unit), engine)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["token", "word"])
def test_roles_alternate_and_the_ids_are_the_transcript(tokenizer: Tokenizer, unit: Unit) -> None:
    model = model_of(tokenizer, unit)
    found = model.rewind("The dog.", turns=5, n=20, max_new_tokens=30, sampling=FREE, seed=1)
    assert {len(transcript.messages) for transcript in found} > {1}
    reasons = set()
    for transcript in found:
        roles = [message.role for message in transcript.messages]
        expected = ["user", "assistant"] * 4
        assert roles == expected[len(expected) - len(roles) :]
        assert transcript.messages[-1].text == "The dog."
        assert list(transcript.messages) == Template(model.language).messages(transcript.ids)
        assert not any(MARKER.search(message.text) for message in transcript.messages)
        reasons.add(transcript.finish_reason)
        if transcript.finish_reason == "stop":
            assert roles[0] == "user"
            assert transcript.ids[-1] == tokenizer.start_id
    assert "turns" in reasons
    assert "stop" in reasons


def test_saved_ids_give_the_same_probabilities_as_the_live_cache(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    [transcript] = model.rewind("The dog.", turns=3, max_new_tokens=20, seed=4)
    ids = transcript.ids
    _, reloaded = model.engine.prefill(ids)
    rows, live = model.engine.prefill(ids[:3])
    for id_ in ids[3:]:
        live = model.engine.step(rows, [int(id_)])[0]
    np.testing.assert_allclose(live, reloaded, atol=1e-4)


def test_no_two_messages_of_several_conversations_are_drawn_with_one_seed(
    tokenizer: Tokenizer,
) -> None:
    found = model_of(tokenizer).rewind("The dog.", turns=3, n=3, max_new_tokens=5, seed=4)
    assert [transcript.seed for transcript in found] == [4, 7, 10]


def test_questions_and_replies_come_with_log_probabilities_and_without_tags(
    tokenizer: Tokenizer,
) -> None:
    model = model_of(tokenizer)
    for texts in (
        model.ask("The dog.", context="It rained.", n=8, max_new_tokens=12, sampling=FREE, seed=2),
        model.reply("Who is there?", n=8, max_new_tokens=12, sampling=FREE, seed=2),
    ):
        assert len(texts) == 8
        assert {text.finish_reason for text in texts} == {"stop", "length"}
        for text in texts:
            assert text.text
            assert not MARKER.search(text.text)
            assert text.logprob < 0


def test_a_candidate_does_not_depend_on_how_many_there_are(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    many, few = (
        [text.text for text in model.ask("The dog.", n=n, max_new_tokens=12, seed=2)]
        for n in (8, 2)
    )
    assert many[:2] == few


def test_a_context_changes_the_question(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, bias=0.0)
    about = [
        model.ask("The dog.", context=context, max_new_tokens=12, seed=2)[0].text
        for context in ("", "It rained.", "The sun shone.")
    ]
    assert len(set(about)) == 3


def test_a_message_that_is_not_finished_is_left_out(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, bias=-30.0)
    [transcript] = model.rewind("The dog.", turns=2, max_new_tokens=3, seed=1)
    assert transcript.finish_reason == "length"
    assert [message.text for message in transcript.messages] == ["The dog."]


def test_a_conversation_that_fills_the_context_ends(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    transcripts = model.rewind("The dog ran. " * 20, turns=200, max_new_tokens=40, seed=1, n=3)
    for transcript in transcripts:
        assert len(transcript.ids) <= SHAPE["block_size"] + 1
        assert transcript.finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("turns", "left_over", "reason"), [(1, 0, "turns"), (1, -1, "turns"), (2, -1, "length")]
)
def test_what_fills_the_context_to_the_last_id_is_whole(
    tokenizer: Tokenizer, turns: int, left_over: int, reason: str
) -> None:
    template = Template(Language(tokenizer, "backward", "token"))
    given = [Message("assistant", "Yes.")]
    written = template.language.order.to_model(tokenizer.encode("Did it rain?"))
    size = len(template.before(given).ids) + len(written) + 1  # with the tag
    rewinding = Rewinding(
        template, given, turns=turns, context="", block_size=size + left_over, seed=0
    )
    rewinding.take(Text("Did it rain?", "", "stop", -1.0, len(written) + 1, 0, written))
    assert rewinding.prompt is None
    transcript = rewinding.transcript
    assert (transcript.finish_reason, len(transcript.messages)) == (reason, 2)


def test_with_one_id_left_the_next_message_is_begun(tokenizer: Tokenizer) -> None:
    template = Template(Language(tokenizer, "backward", "token"))
    given = [Message("assistant", "Yes.")]
    written = template.language.order.to_model(tokenizer.encode("Did it rain?"))
    size = len(template.before(given).ids) + len(written) + 1
    rewinding = Rewinding(template, given, turns=2, context="", block_size=size, seed=0)
    rewinding.take(Text("Did it rain?", "", "stop", -1.0, len(written) + 1, 0, written))
    assert rewinding.prompt is not None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"message": ""}, "no message to go back from"),
        ({"message": "Yes.", "turns": 0}, "turns = 0"),
        ({"message": "Yes.", "n": 0}, "n = 0"),
        ({"message": "yes " * 500}, "give a shorter one"),
    ],
)
def test_bad_requests_are_refused(
    tokenizer: Tokenizer, arguments: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        model_of(tokenizer).rewind(**arguments)  # type: ignore[arg-type]
