"""The web page, and the reference of the API. The page consists of static files, which use the API like any client."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from service.api.reference import reference

WEB = Path(__file__).parents[2] / "web"
router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=WEB)


@router.get("/")
def start() -> RedirectResponse:
    return RedirectResponse("/web/")


@router.get("/web/")
def page() -> FileResponse:
    return FileResponse(WEB / "index.html")


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    return HTMLResponse(reference(request.app.openapi(), str(request.base_url)))
