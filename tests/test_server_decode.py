"""The decode thread: fair, bounded, stopped when a client leaves, alive after a fault."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from backgpt.api import Model
from backgpt.bridge import BRIDGES_TRIED
from backgpt.running import Job
from backgpt.sampling import Sampling
from backgpt.server.channel import Channel, Ended, Part, Tells, Wrote
from backgpt.server.decode import DecodeThread
from backgpt.server.failures import ApiError, BusyError, FaultError
from backgpt.server.scheduler import Scheduler, SliceTask, WriteTask
from backgpt.server.schema import MOST_TRIED
from backgpt.tokenizer import Tokenizer
from serving import CLIENT, JSON, catalog_of, joined, post, serving, until
from tiny_models import Watched, tiny_model

PATH = "/v1/completions"
ENDLESS: dict[str, Any] = {"prompt": "The end.", "temperature": 1.0, "seed": 1}


@pytest.fixture
def model(tokenizer: Tokenizer) -> Model:
    """A model that never ends by itself."""
    return tiny_model(tokenizer, bias=-50.0, block_size=2048)


def engine_of(model: Model) -> Watched:
    assert isinstance(model.engine, Watched)
    return model.engine


def part(model: Model, text: str = "The end.", **job: Any) -> Part:
    prompt = model.prompt(text)
    return Part(
        model.engine, Job(model.language, prompt, sampling=Sampling(temperature=1.0), **job)
    )


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def channel() -> Channel:
    return Channel(1, lambda _: None)


def test_in_every_round_every_sample_gets_one_id(model: Model) -> None:
    async def test() -> None:
        scheduler = Scheduler(max_running=8)
        channels = [channel() for _ in range(3)]
        scheduler.round([WriteTask(one, part(model, seed=i)) for i, one in enumerate(channels)], [])
        before = scheduler.n_drawn
        for count in range(1, 5):
            scheduler.round([], [])
            assert scheduler.n_drawn == before + 3 * count

    on_a_loop(test)


def test_of_a_text_that_nobody_watches_only_its_end_is_told(model: Model) -> None:
    async def test() -> None:
        scheduler = Scheduler(max_running=8)
        both: tuple[Tells, ...] = ("pieces", "ends")
        for tells in both:
            one = replace(part(model, max_new_tokens=20), tells=tells)
            scheduler.round([WriteTask(channel(), one)], [])
        while scheduler.has_work:
            scheduler.round([], [])
        watched, unwatched = (
            [event for to, event in scheduler.said if to is one]
            for one in dict.fromkeys(to for to, _ in scheduler.said)
        )
        *pieces, end, _ = watched
        [only, _] = unwatched
        assert isinstance(end, Ended)
        assert isinstance(only, Ended)
        assert only.drawing.result.text == end.drawing.result.text
        assert len(pieces) > 1
        assert all(isinstance(event, Wrote) for event in pieces)

    on_a_loop(test)


def test_long_prompts_are_read_between_steps_and_not_all_at_once(model: Model) -> None:
    async def test() -> None:
        scheduler = Scheduler(max_running=8)
        long_ones = [WriteTask(channel(), part(model, "word " * 300)) for _ in range(3)]
        scheduler.round([WriteTask(channel(), part(model)), *long_ones], [])
        assert scheduler.n_running == 1
        for expected in (2, 3, 4):
            scheduler.round([], [])
            assert scheduler.n_running == expected

    on_a_loop(test)


def test_work_in_slices_takes_turns_with_streams(model: Model) -> None:
    def slices() -> Any:
        for _ in range(5):
            yield
        return "done"

    async def test() -> None:
        scheduler = Scheduler(max_running=8)
        working = channel()
        scheduler.round([WriteTask(channel(), part(model)), SliceTask(working, slices())], [])
        while not working.ended:
            before = scheduler.n_drawn
            scheduler.round([], [])
            assert scheduler.n_drawn == before + 1

    on_a_loop(test)


def test_a_text_that_comes_to_a_stop_string_is_let_go_of_at_once(model: Model) -> None:
    async def test() -> None:
        scheduler, writing = Scheduler(max_running=8), channel()
        scheduler.round([WriteTask(writing, part(model, stop=["e"]))], [])
        while not writing.ended:
            scheduler.round([], [])
        assert scheduler.n_running == 0
        assert not engine_of(model).rows

    on_a_loop(test)


def test_no_more_than_may_run_and_the_others_come_in_order(model: Model) -> None:
    async def test() -> None:
        scheduler = Scheduler(max_running=3)
        waiting = [WriteTask(channel(), part(model, n=2, max_new_tokens=3)) for _ in range(3)]
        order: list[Channel] = []
        scheduler.round(waiting, [])
        while scheduler.has_work:
            assert scheduler.n_running <= 3
            order += [one for one, said in scheduler.said if isinstance(said, Wrote)]
            scheduler.said = []
            scheduler.round([], [])
        assert list(dict.fromkeys(order)) == [one.channel for one in waiting]

    on_a_loop(test)


def test_a_client_that_leaves_frees_its_rows_within_one_step(model: Model) -> None:
    engine, let_go = engine_of(model), threading.Semaphore(0)
    with serving(catalog_of(model)) as address:
        engine.before_step = lambda: assert_true(let_go.acquire(timeout=10))
        options = {"order": "prepend"}
        body = {**ENDLESS, "n": 3, "stream": True, "stream_options": options}
        with httpx.stream("POST", address + PATH, json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            until_data(lines)
            assert len(engine.rows) == 3
        time.sleep(0.3)  # the step that the engine is in goes on, as it would
        before = engine.n_steps
        let_go.release(100)
        until(lambda: not engine.rows)
        assert engine.n_steps <= before + 1
        engine.before_step = lambda: None
        assert post(address, PATH, **ENDLESS, max_tokens=2).status_code == 200


def test_a_client_that_waits_for_a_whole_text_and_leaves_stops_it(model: Model) -> None:
    engine = engine_of(model)
    engine.before_step = lambda: time.sleep(0.005)
    with serving(catalog_of(model)) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + PATH, json=ENDLESS, timeout=0.3)
        until(lambda: not engine.rows, within=3)
        assert engine.n_steps < 1500


def test_a_client_that_leaves_with_its_text_has_canceled_nothing(model: Model) -> None:
    async def test() -> None:
        scheduler, served, leaving = Scheduler(max_running=3), channel(), channel()
        writing = [
            WriteTask(served, part(model, max_new_tokens=1)),
            WriteTask(leaving, part(model)),
        ]
        scheduler.round(writing, [])
        assert (served.ended, leaving.ended) == (True, False)
        scheduler.round([], [served])
        assert scheduler.n_canceled == 0
        scheduler.round([], [leaving])
        assert scheduler.n_canceled == 1

    on_a_loop(test)


def test_work_of_a_client_that_leaves_is_closed(model: Model) -> None:
    async def test() -> None:
        closed: list[bool] = []

        def slices() -> Any:
            try:
                while True:
                    yield
            finally:
                closed.append(True)

        scheduler, working = Scheduler(max_running=3), channel()
        scheduler.round([SliceTask(working, slices())], [])
        scheduler.round([], [working])
        assert closed == [True]
        assert not scheduler.has_work

    on_a_loop(test)


def test_a_full_server_says_so_and_when_to_come_again(model: Model) -> None:
    engine, let_go = engine_of(model), threading.Event()
    engine.before_step = lambda: assert_true(let_go.wait(timeout=20))
    decoder = DecodeThread(max_running=2, max_waiting=1)
    with serving(catalog_of(model), decoder=decoder) as address:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(post(address, PATH, **ENDLESS, max_tokens=3))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: decoder.in_flight == 3)
        assert "\nbackgpt_samples_in_flight 3.0\n" in CLIENT.get(address + "/metrics").text
        refused = post(address, PATH, **ENDLESS, max_tokens=3)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert post(address, "/v1/score", input="The end.").status_code == 429
        let_go.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 3
        until(lambda: decoder.in_flight == 0)
        assert post(address, PATH, **ENDLESS, max_tokens=3).status_code == 200


def test_a_fault_in_a_step_fails_all_who_wait_at_once_and_the_next_request_works(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    engine, let_go = engine_of(model), threading.Event()
    engine.before_step = lambda: assert_true(let_go.wait(timeout=20))
    decoder = DecodeThread(max_running=2, max_waiting=10)
    with serving(catalog_of(model), decoder=decoder) as address:
        answers: list[httpx.Response] = []

        def ask(**more: Any) -> None:
            answers.append(post(address, PATH, **{**ENDLESS, "max_tokens": 3, **more}))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        threads.append(threading.Thread(target=ask, kwargs={"stream": True}))
        for thread in threads:
            thread.start()
        until(lambda: decoder.in_flight == 5)
        engine.fails_with = RuntimeError("SECRET")
        started = time.monotonic()
        let_go.set()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 5
        streamed = [one for one in answers if one.status_code == 200]
        assert len(streamed) == 1
        assert '"code": "fault"' in streamed[0].text
        assert "[DONE]" not in streamed[0].text
        for answer in answers:
            assert "SECRET" not in answer.text
            if answer not in streamed:
                assert answer.status_code == 500
                assert answer.json()["error"]["code"] == "fault"
        assert not engine.rows
        engine.fails_with = None
        assert post(address, PATH, **ENDLESS, max_tokens=3).status_code == 200
        assert decoder.scheduler.n_faults in (1, 2)  # who came in that very round fails in the next
    assert "RuntimeError" in caplog.text
    assert "SECRET" not in caplog.text


def test_an_engine_that_always_fails_ends_the_thread_and_nobody_hangs(model: Model) -> None:
    died = threading.Event()
    decoder = DecodeThread(died=died.set)
    engine_of(model).fails_with = RuntimeError()
    with serving(catalog_of(model), decoder=decoder) as address:
        answers = [post(address, PATH, **ENDLESS) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [500, 500, 500, 503]
        assert died.is_set()
        assert CLIENT.get(address + "/health").status_code == 503
    assert not decoder.stopped_in_peace


def test_an_engine_that_always_fails_at_reading_prompts_is_noticed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        def fail(*_: Any) -> Any:
            raise RuntimeError

        monkeypatch.setattr(model.engine, "prefill", fail)
        scheduler = Scheduler(max_running=3)
        channels = [channel() for _ in range(3)]
        for one in channels[:2]:
            scheduler.round([WriteTask(one, part(model))], [])
        with pytest.raises(RuntimeError):
            scheduler.round([WriteTask(channels[2], part(model))], [])
        assert [type(said) for _, said in scheduler.said] == [FaultError, type(None)] * 3

    on_a_loop(test)


@pytest.mark.parametrize("one_goes_well", [True, False])
def test_an_engine_that_fails_three_times_in_a_row_at_writing_is_noticed(
    model: Model, one_goes_well: bool
) -> None:
    async def test() -> None:
        scheduler = Scheduler(max_running=3)

        def write_failing() -> None:
            engine_of(model).fails_with = RuntimeError()
            scheduler.round([WriteTask(channel(), part(model))], [])
            scheduler.round([], [])  # the first id needs no step

        write_failing()
        write_failing()
        if one_goes_well:
            engine_of(model).fails_with = None
            scheduler.round([WriteTask(channel(), part(model, max_new_tokens=2))], [])
            while scheduler.has_work:
                scheduler.round([], [])
            write_failing()
            return
        with pytest.raises(RuntimeError):
            write_failing()

    on_a_loop(test)


def test_the_next_turn_of_a_conversation_comes_before_others_that_wait(model: Model) -> None:
    async def test() -> None:
        scheduler = Scheduler(max_running=1)
        talking, waiting = channel(), channel()
        first = part(model, max_new_tokens=2)
        turns = iter([first.job, None])
        talk = replace(first, after=lambda _: next(turns))
        scheduler.round([WriteTask(talking, talk), WriteTask(waiting, first)], [])
        while scheduler.has_work:
            scheduler.round([], [])
        order = [one for one, said in scheduler.said if isinstance(said, Ended)]
        assert order == [talking, talking, waiting]

    on_a_loop(test)


@pytest.mark.parametrize("one_goes_well", [True, False])
def test_work_that_fails_three_times_in_a_row_is_noticed(one_goes_well: bool) -> None:
    async def test() -> None:
        def slices(error: Exception | None) -> Any:
            if error:
                raise error
            return "done"
            yield

        scheduler = Scheduler(max_running=3)
        outcomes = [RuntimeError(), RuntimeError(), RuntimeError()]
        works = [SliceTask(channel(), slices(error)) for error in outcomes]
        if one_goes_well:
            works.insert(2, SliceTask(channel(), slices(None)))
        for work in works[:-1]:
            scheduler.round([work], [])
        if one_goes_well:
            scheduler.round(works[-1:], [])
            return
        with pytest.raises(RuntimeError):
            scheduler.round(works[-1:], [])

    on_a_loop(test)


def test_nobody_waits_for_ever_when_letting_go_fails(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        def fail(_: Any) -> None:
            raise RuntimeError

        def stubborn() -> Any:
            try:
                yield
                yield
            finally:
                raise RuntimeError

        scheduler, writing, working = Scheduler(max_running=3), channel(), channel()
        scheduler.round([WriteTask(writing, part(model)), SliceTask(working, stubborn())], [])
        monkeypatch.setattr(model.engine, "release", fail)
        scheduler.said = []
        with pytest.raises(RuntimeError):
            scheduler.round([], [writing])
        assert scheduler.said == [(writing, None)]
        scheduler.said = []
        error = ApiError(503, "the end")
        scheduler.end_all(error)
        assert scheduler.said == [(working, error), (working, None)]

    on_a_loop(test)


def test_a_request_of_many_parts_that_comes_too_late_is_ended_once(model: Model) -> None:
    async def test() -> None:
        decoder = DecodeThread()
        late = decoder.write([part(model), part(model), part(model)])
        decoder.ask_to_stop()
        decoder.start()
        with pytest.raises(ApiError, match="stopping"):
            async for _ in late.events():
                pass
        await asyncio.to_thread(decoder.stop)
        await asyncio.sleep(0.01)
        assert decoder.in_flight == 0

    on_a_loop(test)


def test_a_fault_in_one_requests_own_work_is_told_to_it_alone(model: Model) -> None:
    async def test() -> None:
        def broken() -> Any:
            yield
            raise ValueError("SECRET")

        scheduler, working, writing = Scheduler(max_running=3), channel(), channel()
        scheduler.round([SliceTask(working, broken()), WriteTask(writing, part(model))], [])
        scheduler.round([], [])
        said = [event for one, event in scheduler.said if one is working]
        assert isinstance(said[0], FaultError)
        assert said[1:] == [None]
        assert not writing.ended

    on_a_loop(test)


def test_health_fails_when_the_thread_has_not_moved_for_5_seconds(model: Model) -> None:
    now = 100.0
    engine, let_go, inside = engine_of(model), threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        assert let_go.wait(timeout=20)

    engine.before_step = hang
    with serving(catalog_of(model), decoder=DecodeThread(clock=lambda: now)) as address:
        assert CLIENT.get(address + "/health").json()["status"] == "ok"
        thread = threading.Thread(target=lambda: post(address, PATH, **ENDLESS, max_tokens=3))
        thread.start()
        assert inside.wait(timeout=10)
        now = 104.0
        assert CLIENT.get(address + "/health").status_code == 200
        now = 106.0
        answer = CLIENT.get(address + "/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "stuck")
        let_go.set()
        thread.join()
        until(lambda: CLIENT.get(address + "/health").status_code == 200)


def test_a_stopped_server_fails_what_is_not_finished(model: Model) -> None:
    async def test() -> None:
        decoder = DecodeThread()
        decoder.start()
        writing = decoder.write([part(model)])
        events = writing.events()
        assert isinstance(await anext(events), Wrote)
        await asyncio.to_thread(decoder.stop)
        with pytest.raises(ApiError, match="stopping"):
            async for _ in events:
                pass
        with pytest.raises(ApiError, match="stopping"):
            decoder.write([part(model)])
        assert decoder.in_flight == 0

    on_a_loop(test)
    assert not engine_of(model).rows


def test_hundreds_of_requests_leave_no_row_and_no_weight(model: Model) -> None:
    async def test() -> None:
        decoder = DecodeThread(max_running=8, max_waiting=2000)
        decoder.start()
        channels = [decoder.write([part(model, max_new_tokens=2)]) for _ in range(300)]
        for number, one in enumerate(channels):
            if number % 3:
                one.close()
            else:
                assert [e async for e in one.events() if isinstance(e, Ended)]
        while decoder.in_flight:
            await asyncio.sleep(0.01)
        decoder.stop()
        assert decoder.scheduler.n_running == decoder.n_waiting == 0

    on_a_loop(test)
    assert not engine_of(model).rows


def test_more_than_fits_is_refused_before_anything_is_made(model: Model) -> None:
    async def test() -> None:
        decoder = DecodeThread(max_running=2, max_waiting=0)
        decoder.write([part(model, n=3)])  # more than the server takes, but it has nothing else
        with pytest.raises(BusyError):
            decoder.write([part(model)])
        with pytest.raises(BusyError):
            decoder.work(iter(()))  # type: ignore[arg-type]

    on_a_loop(test)


def test_more_texts_than_run_at_a_time_are_written_one_after_the_other(model: Model) -> None:
    decoder = DecodeThread(max_running=2, max_waiting=0)
    with serving(catalog_of(model), decoder=decoder) as address:
        asked = {"seed": 3, "max_tokens": 9}
        choices = post(address, PATH, prompt="The end.", n=5, **asked).json()["choices"]
        texts = model.write("The end.", n=5, seed=3, max_new_tokens=9)
        assert [f"{choice['text']}The end." for choice in choices] == [one.text for one in texts]
        bridges = post(address, PATH, prompt="One day", suffix="The end.", **asked)
        assert len(bridges.json()["choices"]) == 1


def test_parts_of_a_part_have_its_samples_and_its_choices(model: Model) -> None:
    whole = replace(part(model, n=5, first=3, seed=1), first=10)
    parts = list(whole.split(2))
    assert [(one.job.first, one.job.n, one.first) for one in parts] == [
        *((3, 2, 10), (5, 2, 12), (7, 1, 14)),
    ]
    assert {one.job.seed for one in parts} == {1}


def test_of_bridges_no_more_are_tried_than_may_be_asked_for(model: Model) -> None:
    decoder, many = DecodeThread(), {"n": 9, "max_tokens": 1}
    with serving(catalog_of(model), decoder=decoder) as address:
        bridges = post(address, PATH, prompt="One day", suffix="The end.", **many)
        assert len(bridges.json()["choices"]) == 9
        assert decoder.n_drawn == MOST_TRIED < 9 * BRIDGES_TRIED


def test_what_remains_of_a_request_is_not_refused_by_a_server_that_is_full_by_then(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To choose the best is work of its own, for which the request does not queue again."""
    decoder = DecodeThread(max_running=2, max_waiting=0)
    work = decoder.work

    def work_when_full(slices: Any, **how: Any) -> Channel:
        decoder.in_flight += 2
        try:
            return work(slices, **how)
        finally:
            decoder.in_flight -= 2

    monkeypatch.setattr(decoder, "work", work_when_full)
    with serving(catalog_of(model), decoder=decoder) as address:
        best = post(address, PATH, prompt="The end.", best_of=2, max_tokens=5, seed=1)
        assert best.status_code == 200
        assert post(address, "/v1/score", input="The end.").status_code == 429
        until(lambda: decoder.in_flight == 0)


def test_texts_of_many_at_once_are_those_of_each_alone(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer)
    asked = [{"prompt": f"End {i}.", "seed": i, "max_tokens": 10 + i} for i in range(8)]
    with serving(catalog_of(model)) as address:
        texts: dict[int, str] = {}

        def ask(number: int) -> None:
            body = {**asked[number], "stream": True, "stream_options": {"order": "prepend"}}
            with httpx.stream("POST", address + PATH, json=body, timeout=30) as stream:
                texts[number] = text_of(stream.iter_lines())

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, one in enumerate(asked):
        [alone] = model.write(f"End {number}.", seed=number, max_new_tokens=one["max_tokens"])  # type: ignore[arg-type]
        assert texts[number] + f"End {number}." == alone.text


def test_no_text_is_logged(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # the client's own
    with serving(catalog_of(tiny_model(tokenizer))) as address:
        post(address, PATH, prompt="SECRET")
        post(address, PATH, prompt="SECRET", stream=True)
        post(address, PATH, prompt="SECRET " * 500)
        post(address, PATH, SECRET="SECRET")
        post(address, "/v1/score", input="SECRET")
        post(address, "/v1/chat/completions", messages=[{"role": "user", "content": "SECRET"}])
        CLIENT.post(address + PATH, content=b'{"SECRET', headers=JSON)
    out, err = capfd.readouterr()
    assert "SECRET" not in caplog.text + out + err


def assert_true(value: object) -> None:
    assert value


def until_data(lines: Iterable[str]) -> str:
    return next(line for line in lines if line.startswith("data: "))


def text_of(lines: Any) -> str:
    import json

    found = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    return joined([json.loads(line) for line in found])
