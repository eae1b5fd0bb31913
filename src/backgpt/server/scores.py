"""`/v1/score`: how likely texts are each way; `/v1/alternatives`: what else could stand there."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from backgpt.alternatives import find_alternatives
from backgpt.api import Model
from backgpt.order import Direction
from backgpt.score import Score, score_in_slices
from backgpt.server.answers import (
    AlternativeList,
    FoundAlternative,
    ScoredSpan,
    ScoreList,
    ScoreTotal,
    TextScore,
)
from backgpt.server.schema import AlternativesRequest, ScoreRequest
from backgpt.server.service import TheService
from backgpt.slices import Slices

IDS_IN_A_SLICE = 1024

router = APIRouter()


@router.post("/v1/score", response_model=ScoreList)
async def score(asked: ScoreRequest, request: Request, service: TheService) -> ScoreList:
    """Say how likely texts are, word by word, read backward, forward, or both."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    way: Direction | None = None if asked.direction in (None, "both") else asked.direction  # type: ignore[assignment]
    name, model = service.catalog.for_text(asked.model, way)
    models = [model]
    if way is None and (model.language.told or asked.direction == "both"):
        models.append(model.turned())
    data = await service.work_out(request, _scored(models, texts))
    return ScoreList(model=name, data=data)


@router.post("/v1/alternatives", response_model=AlternativeList)
async def alternatives(
    asked: AlternativesRequest, request: Request, service: TheService
) -> AlternativeList:
    """Find the likeliest words directly before a text, likeliest first."""
    name, model = service.catalog.for_text(asked.model)
    hints = asked.backgpt
    prompt = await run_in_threadpool(
        model.prompt,
        asked.suffix,
        words=hints.words,
        length=hints.length,
        continues=hints.continues,
    )
    found = await service.work_out(
        request, find_alternatives(model.engine, model.language, prompt, asked.n)
    )
    return AlternativeList(
        model=name,
        data=[
            FoundAlternative(
                text=one.text, logprob=one.logprob, probability=one.probability, edge=one.edge
            )
            for one in found
        ],
    )


def _scored(models: Sequence[Model], texts: Sequence[str]) -> Slices[list[TextScore]]:
    """Score all texts with all models, slice by slice."""
    totals: list[dict[str, Any]] = [{} for _ in texts]
    spans: list[list[ScoredSpan]] = [[] for _ in texts]
    for model in models:
        scores = yield from score_in_slices(
            model.engine, model.language, texts, together=IDS_IN_A_SLICE
        )
        for number, (text, of_text) in enumerate(zip(texts, scores, strict=True)):
            totals[number][model.direction] = _total(of_text)
            words = model.word_scores(text, of_text)
            spans[number] = spans[number] or [ScoredSpan(text=word.text) for word in words]
            for span, word in zip(spans[number], words, strict=True):
                setattr(span, model.direction, word.logprob)
    return [
        TextScore(index=number, spans=spans[number], **totals[number])
        for number in range(len(texts))
    ]


def _total(score: Score) -> ScoreTotal:
    bits = score.bpb
    return ScoreTotal(
        logprob=score.logprob,
        n_tokens=score.n_tokens,
        n_bytes=score.n_bytes,
        nats_per_token=score.loss,
        bits_per_byte=None if math.isnan(bits) else bits,
        edge=score.edge,
    )
