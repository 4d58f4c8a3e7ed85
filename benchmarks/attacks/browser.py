"""Attacks by a page in the browser of somebody who runs a server without access tokens."""

import httpx

from benchmarks.attacks.target import Open, Target, expect
from benchmarks.serving import serving

EVIL = {"Origin": "http://evil.test", "Sec-Fetch-Site": "cross-site"}


def rebinding_and_other_origins(target: Target) -> str:
    folder = target.folder / "anonymous"
    folder.mkdir(exist_ok=True)
    with serving(folder, VITFIT_ENGINE="fake") as address, httpx.Client(base_url=address, timeout=60) as web:
        expect(web.get("/v1/jobs", headers={"Host": "rebind.test"}), (400, 403, 421), "another name as Host")
        form = {"file": ("a.npz", b"x")}
        expect(web.post("/v1/datasets", files=form, headers=EVIL), (403,), "upload by another page")
        expect(web.get("/v1/jobs", params={"page_token": "x"}, headers=EVIL), (403,), "reading by another page")
        if [path for path in (folder / "data" / "datasets").rglob("*") if path.is_file()]:
            raise Open("the upload of another page was stored")
        expect(web.get("/v1/jobs"), (200,), "the own page")
    return "403 for other names and other origins"
