"""What most tests share: a tokenizer and a small dataset, made once of the built-in corpus."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # tiny models only wait for a second thread
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # or onnxruntime reports to its makers

import pytest
from hypothesis import HealthCheck, settings

from backgpt.corpus import stories
from backgpt.prepare import prepare
from backgpt.tokenizer import Tokenizer

settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("default")

N_STORIES = 120


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A few stories."""
    return stories()[:N_STORIES]


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A dataset folder made of them: vocabulary 512, some held out."""
    folder = tmp_path_factory.mktemp("dataset")
    source = folder / "stories.txt"
    source.write_text("<|endoftext|>".join(texts), encoding="utf-8")
    prepare([str(source)], folder / "data", vocab_size=512, valid_fraction=0.1, workers=1)
    return folder / "data"


@pytest.fixture(scope="session")
def tokenizer(dataset_path: Path) -> Tokenizer:
    """The tokenizer of that dataset."""
    return Tokenizer.load(dataset_path / "tokenizer.json")
