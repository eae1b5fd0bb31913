"""The server as others meet it: OpenAI's own client, the command line, and fuzzed requests."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")
pytest.importorskip("openai", reason="its client is what is tested")

import httpx
import openai
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from backgpt import model_folder
from backgpt.api import Model
from backgpt.builtin import describe
from backgpt.cli import main
from backgpt.tokenizer import Tokenizer
from serving import CLIENT, catalog_of, serving, until
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return tiny_model(tokenizer, told=False, bias=2.8)


@pytest.fixture(scope="module")
def address(model: Model) -> Iterator[str]:
    with serving(catalog_of(model)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_openais_client_lists_the_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.models.retrieve("gpt")


def test_openais_client_completes(client: Any, model: Model) -> None:
    answer = client.completions.create(
        model="tiny", prompt="", suffix="The end.", seed=1, max_tokens=20, n=2, logprobs=2
    )
    texts = model.write("The end.", seed=1, max_new_tokens=20, n=2)
    assert [choice.text + "The end." for choice in answer.choices] == [t.text for t in texts]
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text
    assert answer.usage.completion_tokens == sum(text.n_tokens for text in texts)


def test_openais_client_appends_a_stream_to_the_right_text(client: Any, model: Model) -> None:
    asked = {"model": "tiny", "prompt": "The end.", "seed": 1, "max_tokens": 20, "stream": True}
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked))
    assert text + "The end." == model.write("The end.", seed=1, max_new_tokens=20)[0].text


def test_openais_client_puts_live_pieces_in_front(client: Any, model: Model) -> None:
    text = "The end."
    for chunk in client.completions.create(
        model="tiny",
        prompt=text,
        seed=1,
        max_tokens=20,
        stream=True,
        extra_body={"stream_options": {"order": "prepend", "include_usage": True}},
    ):
        for choice in chunk.choices:
            text = choice.text + text
    assert text == model.write("The end.", seed=1, max_new_tokens=20)[0].text
    assert chunk.usage.completion_tokens > 0


def test_openais_client_chats(client: Any, model: Model) -> None:
    asked: dict[str, Any] = {"model": "tiny", "seed": 2, "max_tokens": 20}
    asked["messages"] = [{"role": "user", "content": "The dog."}]
    [text] = model.ask("The dog.", seed=2, max_new_tokens=20)
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == text.text
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text.text
    assert chunks[-1].choices[0].finish_reason == text.finish_reason


def test_openais_client_gathers_several_answers_of_a_stream(client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "seed": 2, "max_tokens": 20, "n": 6}
    asked["messages"] = [{"role": "user", "content": "The dog."}]
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as events:
        gathered = events.get_final_completion()
    assert len({choice.backgpt["n_tokens"] for choice in whole.choices}) > 1  # one ends first
    for told, choice in zip(gathered.choices, whole.choices, strict=True):
        assert told.message.role == "assistant"
        assert told.message.content == choice.message.content
        assert told.finish_reason == choice.finish_reason


def test_openais_client_raises_its_own_errors(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="the model reads at most"):
        client.completions.create(model="tiny", prompt="word " * 400)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.completions.create(model="gpt", prompt="x")


def test_openais_client_raises_what_fails_in_a_stream(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer, bias=-50)
    model.engine.fails_with = RuntimeError()  # type: ignore[attr-defined]
    with serving(catalog_of(model)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="tiny", prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="the server failed at this"):
            list(stream)


def serve(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "backgpt", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_to_be_served_with_its_description_a_model_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, read_folders, told = model_folder.read_unverified, [], []

    def counted(folder: Path, **options: bool) -> model_folder.ModelFolder:
        read_folders.append(folder.name)
        return read(folder, **options)

    def ask_once(app: FastAPI, *_: object, listening: socket.socket, **__: float) -> None:
        listening.close()
        told.append(TestClient(app, base_url="http://localhost").get("/v1/models").json())

    monkeypatch.setattr(model_folder, "read_unverified", counted)
    monkeypatch.setattr(sys.modules["backgpt.cli.serve"], "_run", ask_once)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--model=stories", "--port=0", "--threads=1"])
    assert (ended.value.code, read_folders) == (0, ["stories"])
    [model] = told[0]["data"]
    card = describe("stories").card
    assert card is not None
    assert model["backgpt"]["description"] == card.description


@pytest.mark.slow
def test_the_command_serves_and_ends_when_told(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("open sesame\n")
    process = serve("--model", "short=stories", "--port=0", "--api-key-file", key, "--threads=1")
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("backgpt: serving short at http://127.0.0.1:"), line
        address = line.split()[-1].rstrip("/")
        until(lambda: reachable(address), within=30)
        assert CLIENT.get(address + "/v1/models").status_code == 401
        key_header = {"authorization": "Bearer open sesame"}
        [model] = CLIENT.get(address + "/v1/models", headers=key_header).json()["data"]
        assert model["id"] == "short"
        assert model["backgpt"]["description"].startswith("Short, simple stories")
        body = {"prompt": "The end.", "max_tokens": 3}
        answer = CLIENT.post(address + "/v1/completions", json=body, headers=key_header)
        assert answer.json()["model"] == "short"
    finally:
        process.terminate()
        out, rest = process.communicate(timeout=30)
    assert process.returncode in (-15, 143)
    assert out == rest == ""


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("grace_seconds", ["0", "60"])
def test_told_to_end_it_waits_a_while_for_what_is_written(grace_seconds: str, times: int) -> None:
    process = serve("--model=stories", "--port=0", "--threads=1", "--grace-seconds", grace_seconds)
    assert process.stderr is not None
    address = process.stderr.readline().split()[-1].rstrip("/")
    until(lambda: reachable(address), within=30)
    body = {"prompt": "The end.", "n": 16, "temperature": 3.0, "min_p": 0.0, "stream": True}
    body |= {"stream_options": {"order": "prepend"}, "max_tokens": 100}
    with httpx.stream("POST", address + "/v1/completions", json=body, timeout=30) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data"))
        for _ in range(times):
            process.terminate()
            time.sleep(0.15)
        rest = [line for line in lines if line]
    out, err = process.communicate(timeout=30)
    ended_well = grace_seconds != "0" and times == 1
    assert rest[-1] == "data: [DONE]" if ended_well else "the server is stopping" in rest[-1]
    assert (process.returncode, out) == (-15, "")
    assert err == f"backgpt: stopping, in at most {grace_seconds} s\n"


@pytest.mark.slow
def test_requests_are_logged_if_asked_for_without_their_text() -> None:
    process = serve("--model=stories", "--port=0", "--threads=1", "--access-log")
    assert process.stderr is not None
    address = process.stderr.readline().split()[-1].rstrip("/")
    until(lambda: reachable(address), within=30)
    CLIENT.post(address + "/v1/completions", json={"prompt": "SECRET", "max_tokens": 1})
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert '"POST /v1/completions HTTP/1.1" 200' in err
    assert "SECRET" not in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets the limits of others")
def test_out_of_files_for_connections_it_says_so_once_and_goes_on() -> None:
    import resource

    process = serve("--model=stories", "--port=0", "--threads=1")
    assert process.stderr is not None
    address = process.stderr.readline().split()[-1].rstrip("/")
    until(lambda: reachable(address), within=30)
    n_open = len(os.listdir(f"/proc/{process.pid}/fd"))
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (n_open + 9, n_open + 9))
    port = int(address.rsplit(":", 1)[1])
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    time.sleep(2.5)  # asyncio tries again every second
    for one in held:
        one.close()
    until(lambda: reachable(address), within=30)
    process.terminate()
    _, err = process.communicate(timeout=30)
    [line] = err.splitlines()
    assert line.startswith("backgpt: no more connections can be taken: Too many open files; raise")


def reachable(address: str) -> bool:
    try:
        return CLIENT.get(address + "/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host=0.0.0.0"], "others could reach this server"),
        (["--api-key-file=/no/such/file"], "the API key cannot be read"),
        (["--model=nothing"], "there is no model 'nothing'"),
        (["--model=base", "--model=base"], "two models are called base"),
        (["--max-running=0"], "max-running"),
        (["--upstream=foo"], "upstream = 'foo': give a URL such as http://"),
        (["--upstream=ftp://foo"], "give a URL such as http://"),
        (["--upstream=http://"], "give a URL such as http://"),
        (["--upstream=http://foo:port"], "give a URL such as http://"),
        (
            ["--model=base", "--host=no-such-host.invalid", "--open-to-network"],
            "host = 'no-such-host.invalid' has no address: choose another --host",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(
    arguments: list[str], reason: str
) -> None:
    process = serve(*arguments, "--port=0", BACKGPT_API_KEY=" \n")  # no key
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, err = (process := serve("--model=base", f"--port={port}")).communicate(timeout=60)
    assert process.returncode == 1
    assert f"port {port}" in err
    assert "choose another --port" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_an_address_of_another_machine_is_one_line_and_exit_code_1() -> None:
    arguments = ("--model=base", "--host=192.0.2.1", "--open-to-network")  # for documentation
    _, err = (process := serve(*arguments, "--port=0")).communicate(timeout=60)
    assert process.returncode == 1
    assert "choose another --host" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_without_the_extra_it_says_which() -> None:
    program = (
        "import sys\nsys.modules['uvicorn'] = None\n"
        "from backgpt.cli import main\nmain(['serve', '--port=0'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "backgpt: the server needs the extra 'serve', of which uvicorn is missing: "
        "pip install 'backgpt[serve]' "
        "(in a clone: pip install -c constraints.txt '.[serve]')\n"
    )


def test_no_web_sockets_are_taken_past_the_guard_and_no_connection_is_closed_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs: list[uvicorn.Config] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        configs.append(server.config)
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--model=stories", "--port=0", "--threads=1", "--grace-seconds=7.5"])
    [config] = configs
    assert (ended.value.code, config.ws) == (0, "none")
    of_clients = httpx.Limits().keepalive_expiry
    assert of_clients is not None
    assert config.timeout_keep_alive > of_clients
    assert config.timeout_graceful_shutdown is not None
    assert config.timeout_graceful_shutdown > 7.5 + 1  # streams say that they end


def test_neither_the_package_nor_its_help_loads_the_servers_libraries() -> None:
    program = (
        "import sys, backgpt.cli, backgpt.cli.serve\n"
        "print({'fastapi', 'uvicorn', 'starlette', 'httpx', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_when_the_models_can_no_longer_be_run_the_command_ends_with_exit_code_1() -> None:
    program = (
        "from backgpt.engine import native_engine\n"
        "def step(*_): raise RuntimeError('SECRET')\n"
        "native_engine.NativeEngine.step = step\n"
        "from backgpt.cli import main\n"
        "main(['serve', '--model=stories', '--port=0', '--threads=1'])"
    )
    pytest.importorskip("backgpt.engine._native", reason="there is no native engine here")
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = process.stderr.readline().split()[-1].rstrip("/")
    until(lambda: reachable(address), within=30)
    body = {"prompt": "The end.", "max_tokens": 5}
    statuses = [CLIENT.post(address + "/v1/completions", json=body).status_code for _ in range(3)]
    _, err = process.communicate(timeout=30)
    assert statuses == [500, 500, 500]
    assert process.returncode == 1
    assert err.endswith("backgpt: the models can no longer be run: start the server again\n")
    assert "RuntimeError at " in err
    assert "SECRET" not in err
