"""/v1/devices, /v1/methods and /healthz: what this server offers, and whether it works."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response

from latency.devices import PROFILES
from service.context import ServiceOf, server_version
from service.errors import NotFound, Unhealthy
from service.schemas import DeviceList, Health, MethodList

router = APIRouter(tags=["server"])
EXAMPLES: dict[str, Any] = {
    "a core": {"value": {**json.loads((PROFILES / "generic-mobile.json").read_text()), "name": "user-phone"}}
}


@router.get("/v1/devices")
def list_devices(service: ServiceOf) -> DeviceList:
    """Where latency is measured (this machine) or predicted (profiles)."""
    return DeviceList(devices=list(service.catalog.devices()))


@router.get("/v1/devices/{name}")
def get_device(name: str, service: ServiceOf) -> dict[str, Any]:
    """One device."""
    devices = {str(device["name"]): device for device in service.catalog.devices()}
    if name not in devices:
        raise NotFound("device", name, list(devices))
    return devices[name]


@router.post("/v1/devices", status_code=201)
def create_device(
    profile: Annotated[dict[str, Any], Body(openapi_examples=EXAMPLES)], response: Response, service: ServiceOf
) -> dict[str, Any]:
    """Add a device: a profile as docs/devices.md describes it, with units, source and date. Its name begins with `user-`."""
    found = service.devices.add(profile)
    response.headers["Location"] = f"/v1/devices/{found['name']}"
    return found


@router.delete("/v1/devices/{name}", status_code=204)
def delete_device(name: str, service: ServiceOf) -> None:
    """Forget a device that was added; 409 for one that ships, and while an unfinished job uses it."""
    service.devices.delete(name)


@router.get("/v1/methods")
def list_methods(service: ServiceOf) -> MethodList:
    """The ways to compress, and the criteria that each can rank by."""
    return MethodList(methods=list(service.catalog.methods()))


@router.get("/healthz")
def health(service: ServiceOf) -> Health:
    """Whether the database answers and jobs are being run."""
    if not service.runner.alive:
        raise Unhealthy("The part of the server that runs jobs has stopped. Restart the server.")
    return Health(status="ok", version=server_version(), jobs=service.jobs.counts())
