"""The web page. It consists of static files, which use the API like any other client."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

WEB = Path(__file__).parents[2] / "web"
router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=WEB)


@router.get("/")
def start() -> RedirectResponse:
    return RedirectResponse("/web/")


@router.get("/web/")
def page() -> FileResponse:
    return FileResponse(WEB / "index.html")
