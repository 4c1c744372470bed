"""The ASGI application: recommendations over HTTP, with OpenAPI, metrics and a page to try it."""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import psutil
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixrec_core import __version__
from pixrec_core.errors import ArtefactError, PixRecError, QueryError
from pixrec_core.schemas import HAS_IMAGE
from pixrec_core.serving.recommender import Recommender
from pixrec_core.serving.server.answers import (
    answer_photo,
    answer_question,
    answer_questions,
    answer_similar,
    catalogue_rows,
    describe_items,
    find_catalogue_items,
    known_history,
)
from pixrec_core.serving.server.live import LiveRecommender, Watcher
from pixrec_core.serving.server.online_log import OnlineLog
from pixrec_core.serving.server.schemas import (
    Answer,
    Batch,
    BatchAnswer,
    DatasetInfo,
    Item,
    Question,
)
from pixrec_core.settings import ServerSettings

log = logging.getLogger(__name__)

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1", "[::1]")
#: Of the page: its script and style are in the page itself, photos and answers come from this server.
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SHOWN: Final = 50  # items or users of a search, at most
MAX_SEARCH: Final = 200  # characters of a search

T = TypeVar("T")


class Metrics:
    """Prometheus metrics of one application.

    With several processes, prometheus_client shares them through the folder PROMETHEUS_MULTIPROC_DIR.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self.seconds = Histogram(
            "pixrec_request_seconds",
            "Seconds from the start of a request to its answer.",
            labels,
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
        self.refused = Counter(
            "pixrec_refused_total", "Requests refused because too many waited.", registry=self.registry
        )
        self.skipped = Counter(
            "pixrec_unknown_total",
            "Users and items that the promotion does not know.",
            ("kind",),
            registry=self.registry,
        )
        self.promotion = Gauge(
            "pixrec_promotion",
            "Number of the promotion that serves.",
            ("dataset",),
            registry=self.registry,
            multiprocess_mode="livemin",
        )

    def set_promotion(self, loaded: Recommender) -> None:
        """Note which promotion serves."""
        self.promotion.labels(loaded.promotion.dataset).set(loaded.promotion.number)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
            if not psutil.pid_exists(pid := int(path.stem.rpartition("_")[2])):
                multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class Limits:
    """ASGI middleware: the largest body, and metrics of every request.

    Args:
        app: that answers.
        max_body_bytes: largest body.
        metrics: to write to.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, metrics: Metrics) -> None:
        self.app, self.max_body_bytes, self.metrics = app, max_body_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status, received = time.perf_counter(), 500, 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise HTTPException(
                    413, f"the body has more than {self.max_body_bytes:,} bytes (server.max_body_bytes)"
                )
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, counted, watched)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")  # never the path asked, which has ids
            self.metrics.seconds.labels(route, str(status)).observe(time.perf_counter() - begin)


class Server:
    """What the routes share: recommenders, limits and the log of answers."""

    def __init__(self, recommenders: Mapping[str, LiveRecommender], settings: ServerSettings, metrics: Metrics) -> None:
        self.recommenders, self.settings, self.metrics = recommenders, settings, metrics
        self.limiter = CapacityLimiter(settings.threads)
        self.waiting = 0
        self.logs = {name: OnlineLog(live.paths.online) for name, live in recommenders.items()}

    def live(self, dataset: str) -> LiveRecommender:
        """Return the recommender of a dataset.

        Raises:
            HTTPException: 404 for an unknown dataset, 503 for one without a promotion.
        """
        if dataset not in self.recommenders:
            raise HTTPException(404, f"unknown dataset {dataset!r}; served: {', '.join(self.recommenders)}")
        live = self.recommenders[dataset]
        if live.current is None:
            raise HTTPException(503, live.error or f"{dataset} is not loaded")
        return live

    async def compute(self, dataset: str, function: Callable[[Recommender], T]) -> T:
        """Return `function(recommender)`, computed in a thread within the limits of the settings.

        Files of a method that is loaded late may belong to a promotion that has been replaced since; then the newest
        one answers.

        Raises:
            HTTPException: 503 if too many requests wait, 504 after the time limit.
        """
        live, settings = self.live(dataset), self.settings
        if self.waiting >= settings.threads + settings.max_waiting:
            self.metrics.refused.inc()
            raise HTTPException(503, "too many requests wait; try again", headers={"Retry-After": "1"})

        deadline = time.monotonic() + settings.timeout_s

        def with_newest() -> T:
            if time.monotonic() > deadline:  # it has waited too long for a thread
                raise TimeoutError
            current = live.current
            assert current is not None
            try:
                return function(current)
            except ArtefactError:
                live.refresh()
                newest = live.current
                if newest is None or newest is current:  # no other thread has refreshed it either
                    raise
                return function(newest)

        def finished(task: asyncio.Future[T]) -> None:
            self.waiting -= 1
            if not task.cancelled():
                task.exception()  # a request that has timed out does not read it

        self.waiting += 1
        task = asyncio.ensure_future(to_thread.run_sync(with_newest, limiter=self.limiter))
        task.add_done_callback(finished)
        try:
            # A thread cannot be stopped. Without the shield, others would start while it still computes.
            return await asyncio.wait_for(asyncio.shield(task), settings.timeout_s)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {settings.timeout_s:g} s (server.timeout_s)") from None


def create_app(recommenders: Mapping[str, LiveRecommender], settings: ServerSettings) -> FastAPI:
    """Return the application.

    `recommenders` are those of `open_recommenders`, by dataset.
    """
    metrics = Metrics()
    server = Server(recommenders, settings, metrics)
    for live in recommenders.values():
        live.watch(metrics.set_promotion)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with Watcher(recommenders, settings.reload_s):
            yield
        for each in server.logs.values():
            each.close()

    app = FastAPI(
        title="PixRec",
        version=__version__,
        description="Next-item recommendations from text, photos and behaviour.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
    )
    app.add_middleware(Limits, max_body_bytes=settings.max_body_bytes, metrics=metrics)
    if hosts := settings.allowed_hosts or (LOOPBACK if settings.host in LOOPBACK else ()):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))  # against DNS rebinding
    app.add_exception_handler(QueryError, partial(_error_response, 422))
    app.add_exception_handler(PixRecError, partial(_error_response, 503))
    _add_operations(app, server)
    _add_recommendations(app, server)
    _add_catalogue(app, server)
    return app


async def _error_response(status: int, _: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, status)


def _guard(settings: ServerSettings) -> list[Any]:
    """The dependency of all routes with data: the token, if there is one."""

    def check_token(authorization: Annotated[str | None, Header()] = None) -> None:
        if settings.token is None:
            return
        expected = f"Bearer {settings.token.get_secret_value()}"
        if not secrets.compare_digest((authorization or "").encode("latin-1"), expected.encode()):
            raise HTTPException(401, "the token is missing or wrong", headers={"WWW-Authenticate": "Bearer"})

    return [Depends(check_token)]


def _add_operations(app: FastAPI, server: Server) -> None:
    guarded = _guard(server.settings)
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"})

    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["operations"])
    async def ready() -> JSONResponse:
        """Status 200 if every dataset has a loaded promotion, else 503."""
        missing = {name: live.error for name, live in server.recommenders.items() if live.current is None}
        return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)

    @app.get("/metrics", tags=["operations"], dependencies=guarded)
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/datasets", tags=["datasets"], dependencies=guarded)
    def datasets() -> list[DatasetInfo]:
        """What serves: per dataset the method, the promotion, and the methods that can be asked."""
        return [DatasetInfo.of(live.current) for live in server.recommenders.values() if live.current is not None]


def _add_recommendations(app: FastAPI, server: Server) -> None:
    settings, guarded = server.settings, _guard(server.settings)
    top_query = Annotated[int, Query(ge=1, le=settings.max_top, description="length of the list")]

    def count_unknown(kind: str, count: int) -> None:
        server.metrics.skipped.labels(kind).inc(count)

    @app.post("/datasets/{dataset}/recommend", tags=["recommend"], dependencies=guarded)
    async def recommend(dataset: str, question: Question) -> Answer:
        """Next items for a user or after a history, or items similar to a text."""
        question.check(settings.max_top)
        answer = await server.compute(
            dataset, lambda recommender: answer_question(recommender, question, count_unknown)
        )
        if settings.log_answers:
            server.logs[dataset].write([(question, answer)])
        return answer

    @app.post("/datasets/{dataset}/recommend/batch", tags=["recommend"], dependencies=guarded)
    async def recommend_batch(dataset: str, batch: Batch) -> BatchAnswer:
        """Next items for many users or after many histories, computed together."""
        questions = batch.questions(settings.max_batch, settings.max_top)
        answers = await server.compute(
            dataset, lambda recommender: answer_questions(recommender, questions, count_unknown)
        )
        if settings.log_answers:
            server.logs[dataset].write(list(zip(questions, answers, strict=True)))
        return BatchAnswer(answers=answers)

    @app.post(
        "/datasets/{dataset}/recommend/photo",
        tags=["recommend"],
        dependencies=guarded,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def recommend_photo(dataset: str, request: Request, top: top_query = 10, method: str | None = None) -> Answer:
        """Items similar to a photo, which is the body of the request: JPEG, PNG, WEBP and others."""
        photo = await request.body()
        return await server.compute(dataset, lambda recommender: answer_photo(recommender, photo, top, method))


def _add_catalogue(app: FastAPI, server: Server) -> None:
    guarded = _guard(server.settings)
    top_query = Annotated[int, Query(ge=1, le=server.settings.max_top, description="length of the list")]
    search_query = Annotated[str, Query(max_length=MAX_SEARCH)]  # each word is looked for in all titles

    @app.get("/datasets/{dataset}/items", tags=["items"], dependencies=guarded)
    async def find_items(
        dataset: str, search: search_query = "", limit: Annotated[int, Query(ge=1, le=SHOWN)] = 20
    ) -> list[Item]:
        """Items with all words of `search` in their title or id; without words the most popular ones."""
        return await server.compute(dataset, lambda recommender: find_catalogue_items(recommender, search, limit))

    @app.get("/datasets/{dataset}/items/similar", tags=["items"], dependencies=guarded)
    async def similar_items(dataset: str, id: str, top: top_query = 10, method: str | None = None) -> Answer:  # noqa: A002
        """Items nearest to an item of the catalogue by a dual tower."""
        return await server.compute(dataset, lambda recommender: answer_similar(recommender, id, top, method))

    @app.get("/datasets/{dataset}/items/photo", tags=["items"], dependencies=guarded)
    async def item_photo(dataset: str, id: str) -> FileResponse:  # noqa: A002
        """The stored photo of an item, as JPEG."""
        live = server.live(dataset)
        rows = catalogue_rows(live.current, [id]) if live.current is not None else {}
        path = live.paths.image(id)
        if not rows.get(id, {}).get(HAS_IMAGE) or not path.is_file():
            raise HTTPException(404, f"no photo of item {id!r}")
        return FileResponse(path, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/datasets/{dataset}/users", tags=["users"], dependencies=guarded)
    async def find_users(
        dataset: str, search: search_query = "", limit: Annotated[int, Query(ge=1, le=SHOWN)] = 20
    ) -> list[str]:
        """Users whose id starts with `search`, sorted."""
        return await server.compute(dataset, lambda recommender: recommender.find_users(search, limit))

    @app.get("/datasets/{dataset}/users/history", tags=["users"], dependencies=guarded)
    async def user_history(dataset: str, id: str) -> list[Item]:  # noqa: A002
        """The items of a user at the time of the promotion, oldest first; empty for an unknown user."""
        return await server.compute(
            dataset, lambda recommender: describe_items(recommender, known_history(recommender, id)[0])
        )
