"""`/v1/score`: how likely texts are each way; `/v1/alternatives`: what else could stand there."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from backgpt.alternatives import find_alternatives
from backgpt.api import Model
from backgpt.order import Direction, ReadingIds
from backgpt.score import Score, context_size, score_in_slices, word_scores
from backgpt.server.answers import (
    AlternativeList,
    FoundAlternative,
    ScoredSpan,
    ScoreList,
    ScoreTotal,
    TextScore,
)
from backgpt.server.failures import ApiError
from backgpt.server.prompts import check_length
from backgpt.server.schema import AlternativesRequest, ScoreRequest
from backgpt.server.service import TheService
from backgpt.slices import Slices

IDS_IN_A_SLICE = 256

router = APIRouter()


@router.post("/v1/score", response_model=ScoreList)
async def score(asked: ScoreRequest, request: Request, service: TheService) -> Response:
    """Say how likely texts are, word by word, read backward, forward, or both."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    asked_way = asked.direction or service.catalog.direction_in(asked.model)
    way: Direction | None = None if asked_way == "both" else asked_way
    name, model = service.catalog.for_text(asked.model, way)
    models = [model]
    if way is None and (model.language.told or asked_way == "both"):
        models.append(model.turned())
    most = min(context_size(one) for one in models) // 2
    if asked.overlap > most:
        raise ApiError(
            400, f"overlap = {asked.overlap}: it must be from 0 to {most} here", param="overlap"
        )
    ids = await run_in_threadpool(_encoded, model, texts)
    scores = await service.work_out(request, _scored(models, texts, ids, overlap=asked.overlap))
    answer = await run_in_threadpool(_told, name, models, texts, ids, scores)
    return Response(answer, media_type="application/json")


@router.post("/v1/alternatives", response_model=AlternativeList)
async def alternatives(
    asked: AlternativesRequest, request: Request, service: TheService
) -> AlternativeList:
    """Find the likeliest words directly before a text, likeliest first."""
    name, model = service.catalog.for_text(asked.model)
    hints = asked.backgpt
    check_length(model, asked.suffix, *hints.words, param="suffix")
    prompt = await run_in_threadpool(
        model.alternatives_prompt,
        asked.suffix,
        words=hints.words,
        length=hints.length,
        continues=hints.continues,
    )
    found = await service.work_out(request, find_alternatives(model, prompt, asked.n))
    return AlternativeList(
        model=name,
        data=[
            FoundAlternative(
                text=one.text, logprob=one.logprob, probability=one.probability, edge=one.edge
            )
            for one in found
        ],
    )


def _encoded(model: Model, texts: Sequence[str]) -> list[ReadingIds]:
    return [model.tokenizer.encode(text) for text in texts]


def _scored(
    models: Sequence[Model], texts: Sequence[str], ids: Sequence[ReadingIds], *, overlap: int
) -> Slices[list[list[Score]]]:
    """Score all texts with each of the models, slice by slice."""
    scores = []
    sizes = [len(text.encode()) for text in texts]
    for model in models:
        scores.append(
            (
                yield from score_in_slices(
                    model,
                    ids,
                    sizes,
                    together=IDS_IN_A_SLICE,
                    overlap=overlap,
                )
            )
        )
    return scores


def _told(
    name: str,
    models: Sequence[Model],
    texts: Sequence[str],
    ids: Sequence[ReadingIds],
    scores: Sequence[Sequence[Score]],
) -> str:
    """Return the answer as JSON; takes a while for long texts, so not for the event loop."""
    data = []
    for number, text in enumerate(texts):
        totals: dict[str, Any] = {}
        spans: list[ScoredSpan] = []
        for model, of_model in zip(models, scores, strict=True):
            totals[model.direction] = _total(of_model[number])
            words = word_scores(model.tokenizer, text, of_model[number], ids=ids[number])
            spans = spans or [ScoredSpan(text=word.text) for word in words]
            for span, word in zip(spans, words, strict=True):
                setattr(span, model.direction, word.logprob)
        data.append(TextScore(index=number, spans=spans, **totals))
    return ScoreList(model=name, data=data).model_dump_json()


def _total(score: Score) -> ScoreTotal:
    bits = score.bpb
    return ScoreTotal(
        logprob=score.logprob,
        n_tokens=score.n_tokens,
        n_bytes=score.n_bytes,
        n_windows=score.n_windows,
        nats_per_token=score.loss,
        bits_per_byte=None if math.isnan(bits) else bits,
        edge=score.edge,
    )
