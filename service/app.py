"""The web application.

It imports neither torch nor onnxruntime. Code that needs them runs in separate processes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from service.api.context import Service, server_version
from service.api.openapi import PROBLEMS, describe
from service.api.routes import agents, artifacts, datasets, jobs, models, offers, pages
from service.core.settings import Settings
from service.middleware.body_limit import BodyLimit
from service.middleware.metrics import Measured, Metrics
from service.middleware.problems import add_handlers
from service.middleware.rate_limit import RateLimit
from service.middleware.request_ids import RequestIds
from service.middleware.same_origin import SameOrigin
from service.middleware.security_headers import SecurityHeaders


def create_app(settings: Settings) -> FastAPI:
    """Create the application for the data folder in `settings`.

    The call creates or upgrades the data folder. Jobs run from the start of the application until its shutdown.

    Raises: OSError if the data folder cannot be written; NewerData if a newer version of vitfit wrote it.
    """
    service = Service.open(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        yield
        await run_in_threadpool(service.close)

    # FastAPI's own documentation pages load scripts from other hosts. /docs is in service/api/routes/pages.py.
    app = FastAPI(
        title="vitfit",
        version=server_version(),
        lifespan=lifespan,
        responses=PROBLEMS,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.state.metrics = Metrics(service.jobs, settings.data)
    app.add_middleware(BodyLimit)
    app.add_middleware(SameOrigin, anonymous=settings.anonymous)
    app.add_middleware(RateLimit, per_minute=settings.requests_per_minute)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Measured, metrics=app.state.metrics)
    app.add_middleware(RequestIds)
    add_handlers(app, settings.data)
    for routes in (models, datasets, jobs, artifacts, offers, agents, pages):
        app.include_router(routes.router)
    app.mount("/web", pages.files)
    return app
