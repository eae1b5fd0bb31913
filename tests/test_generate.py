"""Generation, on an engine that is a table: what is drawn, when it ends, what text comes of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backgpt.engine import FloatArray
from backgpt.errors import UsageError
from backgpt.generate import Writer, collect, collect_all, in_model_order, pieces
from backgpt.language import Language
from backgpt.order import Direction, IdArray, ModelIds, ReadingIds, Unit
from backgpt.running import Job, Running
from backgpt.sampling import Sampling
from backgpt.tokenizer import Tokenizer

GREEDY = Sampling(top_k=1, dry_multiplier=0.0)


class TableEngine:
    """An engine whose logits are any function of the ids a row has read."""

    shares_beginnings = False

    def __init__(
        self, logits: Callable[[list[int]], FloatArray], vocab_size: int, block_size: int = 64
    ) -> None:
        self.logits, self.vocab_size, self.block_size = logits, vocab_size, block_size
        self.rows: dict[int, list[int]] = {}
        self.steps = self.most_rows = 0

    def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
        names = [max(self.rows, default=-1) + 1 + i for i in range(copies)]
        self.rows |= {name: ids.tolist() for name in names}
        self.most_rows = max(self.most_rows, len(self.rows))
        return names, self.logits(ids.tolist())

    def step(self, rows: Sequence[int], ids: Sequence[int]) -> FloatArray:
        self.steps += 1
        for row, id_ in zip(rows, ids, strict=True):
            self.rows[row].append(id_)
            assert len(self.rows[row]) <= self.block_size
        return np.stack([self.logits(self.rows[row]) for row in rows])

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.rows.pop(row, None)

    def score(self, sequences: Sequence[IdArray]) -> list[FloatArray]:
        raise AssertionError("generation does not score")


def language(
    tokenizer: Tokenizer, direction: Direction = "backward", unit: Unit = "token"
) -> Language:
    return Language(tokenizer, direction, unit)


def script(tokenizer: Tokenizer, ids: Sequence[int], prompt_length: int) -> TableEngine:
    """Return an engine that writes `ids` one after the other, whatever the prompt."""

    def logits(read: list[int]) -> FloatArray:
        row = np.zeros(tokenizer.vocab_size, dtype=np.float32)
        row[ids[len(read) - prompt_length]] = 20
        return row

    return TableEngine(logits, tokenizer.vocab_size)


def random_engine(tokenizer: Tokenizer, seed: int = 0) -> TableEngine:
    def logits(read: list[int]) -> FloatArray:
        random = np.random.default_rng([seed, *read])
        return random.normal(0, 3, tokenizer.vocab_size).astype(np.float32)

    return TableEngine(logits, tokenizer.vocab_size)


def drawn_ids(engine: TableEngine, job: Job) -> list[int]:
    running = Running(engine)
    running.add(job)
    return [drawn.id_ for drawn in running.steps()]


@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_backward_model_writes_its_story_in_front_of_the_ending(
    tokenizer: Tokenizer, unit: Unit
) -> None:
    story, ending = "Once there was a fox.\nIt ran home.", "The end."
    lang = language(tokenizer, unit=unit)
    prompt = lang.prompt(ending, at_edge=True)
    written = lang.order.to_model(tokenizer.encode(story)).tolist()
    engine = script(tokenizer, [*written, tokenizer.start_id], len(prompt.ids))
    [text] = collect(engine, Job(lang, prompt, sampling=GREEDY))
    assert text.text == f"{story} {ending}"
    assert text.finish_reason == "stop"
    assert text.n_tokens == len(written) + 1
    assert text.ids.tolist() == written
    assert not engine.rows


@pytest.mark.parametrize("unit", ["token", "word"])
def test_an_ending_that_begins_with_a_closing_mark_has_no_space_in_front(
    tokenizer: Tokenizer, unit: Unit
) -> None:
    lang = language(tokenizer, unit=unit)
    written = lang.order.to_model(tokenizer.encode("Once there was a fox")).tolist()
    for ending in (", and it ran home.", "?", '!" she said.'):
        prompt = lang.prompt(ending, at_edge=True)
        engine = script(tokenizer, [*written, tokenizer.start_id], len(prompt.ids))
        [text] = collect(engine, Job(lang, prompt, sampling=GREEDY))
        assert text.text == f"Once there was a fox{ending}"


def test_a_forward_model_goes_on_from_the_opening(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer, "forward")
    prompt = lang.prompt("Once there was", at_edge=True)
    written = tokenizer.encode("a fox.\nIt ran.").tolist()
    engine = script(tokenizer, [*written, tokenizer.end_id], len(prompt.ids))
    [text] = collect(engine, Job(lang, prompt, sampling=GREEDY))
    assert text.text == "Once there was a fox.\nIt ran."


def test_the_ending_stands_at_the_edge_or_inside(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer)
    ids = tokenizer.encode("The end.").tolist()[::-1]
    assert lang.prompt("The end.", at_edge=True).ids.tolist() == [tokenizer.end_id, *ids]
    assert lang.prompt("The end.", at_edge=False).ids.tolist() == ids


@pytest.mark.parametrize("unit", ["token", "word"])
def test_an_opening_that_ends_with_a_space_is_gone_on_from_with_a_word(
    tokenizer: Tokenizer, unit: Unit
) -> None:
    lang = language(tokenizer, "forward", unit)
    prompt, bare = (lang.prompt(text, at_edge=True) for text in ("It saw a ", "It saw a"))
    assert prompt.ids.tolist() == bare.ids.tolist()  # the space is the next word's
    fox = tokenizer.encode("fox came.").tolist()
    engine = script(tokenizer, [*fox, tokenizer.end_id], len(prompt.ids))
    [text] = collect(engine, Job(lang, prompt, sampling=GREEDY))
    assert (text.text, text.given) == ("It saw a fox came.", "It saw a ")
    assert "".join(pieces(engine, Job(lang, prompt, sampling=GREEDY))) == "fox came."
    joins = int(np.flatnonzero(~tokenizer.starts_group & tokenizer.has_text)[0])
    comma = script(tokenizer, [joins, tokenizer.end_id, *[300] * 60], len(prompt.ids))
    first, *_ = drawn_ids(comma, Job(lang, prompt, sampling=GREEDY))
    assert tokenizer.starts_group[first]
    [ended] = collect(
        script(tokenizer, [tokenizer.end_id], len(prompt.ids)), Job(lang, prompt, sampling=GREEDY)
    )
    assert ended.text == "It saw a "


ENDINGS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "The end.",
            " The end.",
            "\nThe end.",
            "\n\nEnd",
            "  two",
            "<|start|>",
            "é",
            "",
            ", a",
            "?",
        ]
    ),
)


@settings(max_examples=300)
@given(ENDINGS, st.sampled_from(["token", "word"]), st.integers(0, 1000))
def test_the_ending_is_byte_exact_and_the_stream_joins_to_the_text(
    tokenizer: Tokenizer, ending: str, unit: Unit, seed: int
) -> None:
    lang = language(tokenizer, unit=unit)
    prompt = lang.prompt(ending, at_edge=True)
    engine = random_engine(tokenizer, seed)
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": seed}
    options["sampling"] = Sampling(temperature=1.0, min_p=0)
    [text] = collect(engine, Job(lang, prompt, **options))
    assert text.text.endswith(ending)

    writer, grown = Writer(lang, prompt), ending
    for id_ in drawn_ids(engine, Job(lang, prompt, **options)):
        if id_ != tokenizer.start_id:
            grown = writer.push(id_) + grown
    assert writer.finish(text.finish_reason) + grown == text.text


@settings(max_examples=200)
@given(st.integers(0, 1000), st.sampled_from(["token", "word"]))
def test_a_text_is_what_its_ids_decode_to(tokenizer: Tokenizer, seed: int, unit: Unit) -> None:
    lang = language(tokenizer, unit=unit)
    prompt = lang.prompt("The end.", at_edge=True)
    sampling = Sampling(temperature=1.0, min_p=0)
    [text] = collect(
        random_engine(tokenizer, seed),
        Job(lang, prompt, sampling=sampling, max_new_tokens=15, seed=seed),
    )
    ids = np.concatenate((lang.order.to_reading(text.ids), tokenizer.encode("The end.")))
    assert text.text == tokenizer.decode(ReadingIds(ids))


def test_model_order_prints_what_the_original_printed(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer, unit="word")
    prompt = lang.prompt("The end.", at_edge=True)
    written = lang.order.to_model(tokenizer.encode("They became friends again.")).tolist()
    engine = script(tokenizer, [*written, tokenizer.start_id], len(prompt.ids))
    [text] = collect(engine, Job(lang, prompt, sampling=GREEDY))
    assert in_model_order(lang, prompt, text) == "end. The again. friends became They"


def test_in_word_unit_the_first_word_cannot_join_the_ending(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer, unit="word")
    prompt = lang.prompt("The end.", at_edge=True)
    joins = int(np.flatnonzero(~tokenizer.starts_group)[0])

    def logits(read: list[int]) -> FloatArray:
        row = np.zeros(tokenizer.vocab_size, dtype=np.float32)
        row[joins], row[tokenizer.start_id] = 50, -50
        return row

    engine = TableEngine(logits, tokenizer.vocab_size)
    first, *later = drawn_ids(engine, Job(lang, prompt, sampling=GREEDY))
    assert tokenizer.starts_group[first]
    assert set(later) == {joins}


def test_in_word_unit_a_word_cut_by_the_limit_is_dropped(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer, unit="word")
    prompt = lang.prompt("The end.", at_edge=True)
    words = lang.order.to_model(tokenizer.encode("fox elephantine")).tolist()
    long_word = tokenizer.encode("elephantine").tolist()
    assert len(long_word) > 2
    engine = script(tokenizer, [*words, tokenizer.start_id], len(prompt.ids))
    [text] = collect(engine, Job(lang, prompt, sampling=GREEDY, max_new_tokens=len(long_word) - 1))
    assert text.text == "The end."
    assert text.finish_reason == "length"
    assert text.n_tokens == len(long_word) - 1


def test_no_control_id_but_the_stop_is_ever_drawn(tokenizer: Tokenizer) -> None:
    def logits(read: list[int]) -> FloatArray:
        row = np.zeros(tokenizer.vocab_size, dtype=np.float32)
        row[:16] = 30
        row[tokenizer.start_id] = -30
        return row

    lang = language(tokenizer)
    engine = TableEngine(logits, tokenizer.vocab_size)
    prompt = lang.prompt("The end.", at_edge=True)
    drawn = drawn_ids(engine, Job(lang, prompt, sampling=Sampling(), n=3))
    assert min(drawn) >= 16


def test_a_vocabulary_larger_than_the_tokenizer_is_never_drawn_from(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size + 8
    beyond = np.where(np.arange(size) >= tokenizer.vocab_size, 50.0, 0.0).astype(np.float32)
    engine = TableEngine(lambda read: beyond, size)
    lang = language(tokenizer)
    prompt = lang.prompt("The end.", at_edge=True)
    drawn = drawn_ids(engine, Job(lang, prompt, sampling=GREEDY))
    assert max(drawn) < tokenizer.vocab_size


def test_a_sample_does_not_depend_on_those_beside_it(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer)
    prompt = lang.prompt("The end.", at_edge=True)
    several = collect(random_engine(tokenizer), Job(lang, prompt, n=4, sampling=Sampling(), seed=3))
    alone = collect(random_engine(tokenizer), Job(lang, prompt, n=1, sampling=Sampling(), seed=3))
    assert several[0].text == alone[0].text
    assert len({text.text for text in several}) == 4
    other_seed = collect(random_engine(tokenizer), Job(lang, prompt, sampling=Sampling(), seed=4))
    assert other_seed[0].text != alone[0].text


def test_many_texts_are_written_a_few_at_a_time_and_are_the_same(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lang = language(tokenizer)
    prompts = [lang.prompt(text, at_edge=True) for text in ("The end.", "It ran.", "So.")]
    jobs = [
        Job(lang, prompt, n=5, sampling=Sampling(), max_new_tokens=9, seed=seed)
        for seed, prompt in enumerate(prompts)
    ]
    together = collect_all(random_engine(tokenizer), jobs)
    for most, rows in ((1, 1), (3, 3), (7, 5), (15, 15)):
        monkeypatch.setattr("backgpt.generate.MOST_AT_ONCE", most)
        engine = random_engine(tokenizer)
        found = collect_all(engine, jobs)
        for one, other in zip(found, together, strict=True):
            assert [text.text for text in one] == [text.text for text in other]
        assert engine.most_rows == rows


def test_the_log_probability_is_the_models_own_and_counts_the_stop(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer)
    prompt = lang.prompt("The end.", at_edge=True)
    id_ = int(tokenizer.encode("a")[0])
    engine = script(tokenizer, [id_, tokenizer.start_id], len(prompt.ids))
    [text] = collect(engine, Job(lang, prompt, sampling=Sampling(top_k=1, temperature=0.1)))
    one = 20 - np.log(np.exp(20) + tokenizer.vocab_size - 1)
    assert text.logprob == pytest.approx(2 * one)


def test_the_context_is_the_limit_and_is_used_to_its_end(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer)
    prompt = lang.prompt("The end.", at_edge=True)
    engine = script(tokenizer, [300] * 100, len(prompt.ids))
    [text] = collect(engine, Job(lang, prompt, sampling=GREEDY))
    assert text.n_tokens == engine.block_size + 1 - len(prompt.ids)
    assert text.finish_reason == "length"


def test_what_goes_in_circles_is_led_out_by_what_it_wrote_not_by_what_it_was_told(
    tokenizer: Tokenizer,
) -> None:
    def logits(ids: list[int]) -> FloatArray:
        row = np.zeros(tokenizer.vocab_size, dtype=np.float32)
        row[300 + (ids[-1] + 1) % 3] = 5.0  # 300 is divisible by 3
        return row

    def written(sampling: Sampling, *, told: bool) -> list[int]:
        lang = language(tokenizer)
        prompt = lang.prompt("The end.", at_edge=True)
        circle = ModelIds(np.array([*prompt.ids, *[300, 301, 302] * 3]))
        prompt = replace(prompt, ids=circle, n_first=len(circle) if told else 1)
        engine = TableEngine(logits, tokenizer.vocab_size)
        return drawn_ids(engine, Job(lang, prompt, sampling=sampling))

    def n_in_circle(ids: list[int]) -> int:
        found = [300 + place % 3 == id_ for place, id_ in enumerate(ids)]
        return [*found, False].index(False)

    plain = written(Sampling(top_k=1, repetition_penalty=1, dry_multiplier=0), told=False)
    assert n_in_circle(plain) == len(plain) > 40
    dry = Sampling(top_k=1, repetition_penalty=1)
    assert n_in_circle(written(dry, told=False)) == 0
    assert 5 < n_in_circle(written(dry, told=True)) < 12


def test_closing_the_generator_stops_the_engine_and_frees_its_rows(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer)
    engine = random_engine(tokenizer)
    text = pieces(engine, Job(lang, lang.prompt("The end.", at_edge=True), sampling=Sampling()))
    for _ in range(7):
        next(text)
    steps = engine.steps
    text.close()
    assert engine.steps == steps
    assert not engine.rows


@pytest.mark.parametrize(
    ("ending", "options", "words"),
    [
        ("word " * 100, {}, "the model reads at most 64"),
        ("The end.", {"max_new_tokens": 0}, "max-new-tokens = 0"),
    ],
)
def test_a_request_that_cannot_be_is_refused(
    tokenizer: Tokenizer, ending: str, options: dict[str, Any], words: str
) -> None:
    lang = language(tokenizer)
    engine = random_engine(tokenizer)
    with pytest.raises(UsageError, match=words):
        collect(engine, Job(lang, lang.prompt(ending, at_edge=True), sampling=GREEDY, **options))
    assert not engine.rows


def test_nothing_to_go_on_from_is_refused(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer)
    with pytest.raises(UsageError, match="nothing to go on from"):
        collect(
            random_engine(tokenizer), Job(lang, lang.prompt("", at_edge=False), sampling=GREEDY)
        )


def test_behind_a_stop_string_nothing_is_drawn_nor_counted(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer)
    prompt, engine = lang.prompt("The end.", at_edge=True), random_engine(tokenizer)
    [whole] = collect(engine, Job(lang, prompt, sampling=GREEDY, max_new_tokens=40))
    steps, stop = engine.steps, whole.text[-20:-8]
    [stopped] = collect(engine, Job(lang, prompt, sampling=GREEDY, max_new_tokens=40, stop=[stop]))
    assert stopped.ids.tolist() == whole.ids.tolist()[: stopped.n_tokens]
    assert stopped.n_tokens < whole.n_tokens
    assert engine.steps - steps == stopped.n_tokens - 1
    assert not engine.rows


def test_many_prompts_together_give_what_each_gives_alone(tokenizer: Tokenizer) -> None:
    def logits(read: list[int]) -> FloatArray:
        random = np.random.default_rng(read)
        row = random.normal(size=tokenizer.vocab_size).astype(np.float32) * 3
        row[tokenizer.start_id] += 9 * (len(read) % 7 == 0)
        return row

    engine = TableEngine(logits, tokenizer.vocab_size)
    backward = language(tokenizer)
    prompts = [
        backward.prompt(text, at_edge=True) for text in ("The end.", "So they slept.", "word " * 8)
    ]
    sampling = Sampling(temperature=1.0)
    jobs = [
        Job(backward, prompt, n=3, sampling=sampling, max_new_tokens=40, seed=seed)
        for seed, prompt in enumerate(prompts, start=5)
    ]
    together = collect_all(engine, jobs)
    assert not engine.rows
    for job, texts in zip(jobs, together, strict=True):
        alone = collect(engine, job)
        assert [text.text for text in texts] == [text.text for text in alone]
        assert [text.logprob for text in texts] == [text.logprob for text in alone]
        assert {text.seed for text in texts} == {job.seed}
    assert {text.finish_reason for texts in together for text in texts} == {"stop", "length"}
    assert collect_all(engine, []) == []


def test_a_prompt_that_cannot_be_read_leaves_no_row_of_the_others(tokenizer: Tokenizer) -> None:
    class Failing(TableEngine):
        def prefill(self, ids: IdArray, copies: int = 1) -> tuple[list[int], FloatArray]:
            if self.rows:
                raise UsageError("no more")
            return super().prefill(ids, copies)

    engine = Failing(lambda read: np.zeros(tokenizer.vocab_size), tokenizer.vocab_size)
    backward = language(tokenizer)
    prompts = [backward.prompt(text, at_edge=True) for text in ("The end.", "So.")]
    jobs = [Job(backward, prompt, sampling=GREEDY) for prompt in prompts]
    with pytest.raises(UsageError, match="no more"):
        collect_all(engine, jobs)
    assert not engine.rows


def test_a_text_may_stop_at_what_its_last_bytes_turn_out_to_be(tokenizer: Tokenizer) -> None:
    lang = language(tokenizer)
    prompt = lang.prompt("The end.", at_edge=True)
    half = tokenizer.token_bytes.index(b"\xa9")  # of a character whose first byte is to come
    engine = script(tokenizer, [half] * 2, len(prompt.ids))
    ways: dict[str, Any] = {"sampling": GREEDY, "max_new_tokens": 1}
    for stop, reason, text in (
        ([], "length", "\ufffd The end."),
        (["\ufffd"], "stop", " The end."),
    ):
        [found] = collect(engine, Job(lang, prompt, stop=stop, **ways))
        assert (found.finish_reason, found.text) == (reason, text)


def test_nothing_is_read_if_one_of_many_prompts_does_not_fit(tokenizer: Tokenizer) -> None:
    engine, backward = random_engine(tokenizer), language(tokenizer)
    prompts = [backward.prompt(text, at_edge=True) for text in ("The end.", "word " * 100)]
    jobs = [Job(backward, prompt, sampling=GREEDY) for prompt in prompts]
    with pytest.raises(UsageError, match="the model reads at most 64"):
        collect_all(engine, jobs)
    assert engine.most_rows == 0


def test_pieces_return_the_text_that_they_make(tokenizer: Tokenizer) -> None:
    def logits(read: list[int]) -> FloatArray:
        return np.random.default_rng(read).normal(size=tokenizer.vocab_size) * 3

    engine = TableEngine(logits, tokenizer.vocab_size)
    backward = language(tokenizer)
    prompt = backward.prompt("The end.", at_edge=True)
    going = pieces(engine, Job(backward, prompt, sampling=Sampling(), max_new_tokens=20, seed=3))
    joined = prompt.text
    while True:
        try:
            joined = next(going) + joined
        except StopIteration as end:
            text = end.value
            break
    [expected] = collect(
        engine, Job(backward, prompt, sampling=Sampling(), max_new_tokens=20, seed=3)
    )
    assert joined == text.text == expected.text
    assert text.ids.tolist() == expected.ids.tolist()
