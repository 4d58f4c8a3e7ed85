"""/v1, /v1/devices and /v1/methods: the offers of this server. /metrics, /livez and /healthz: its state."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from vitfit.offers import Device, Method

from latency.devices.devices import PROFILES
from service.api.auth import Admin, Reader
from service.api.context import ServiceOf, server_version
from service.api.schemas import DeviceList, Health, MethodList, ServerInfo
from service.core.errors import NotFound, Unhealthy

router = APIRouter(tags=["server"])
EXAMPLES: dict[str, Any] = {
    "a core": {"value": {**json.loads((PROFILES / "generic-mobile.json").read_text()), "name": "user-phone"}}
}


@router.get("/v1")
def get_server(_caller: Reader) -> ServerInfo:
    """Return the version of the server, and the addresses of its lists."""
    return ServerInfo(version=server_version())


@router.get("/v1/devices")
def list_devices(service: ServiceOf, _caller: Reader) -> DeviceList:
    """List the devices. Latency is measured on reachable devices and predicted for devices that are profiles."""
    return DeviceList(devices=[Device.from_json(device) for device in service.catalog.devices()])


@router.get("/v1/devices/{name}")
def get_device(name: str, service: ServiceOf, _caller: Reader) -> Device:
    """Return one device."""
    devices = {str(device["name"]): device for device in service.catalog.devices()}
    if name not in devices:
        raise NotFound("device", name, list(devices))
    return Device.from_json(devices[name])


@router.post("/v1/devices", status_code=201)
def create_device(
    profile: Annotated[dict[str, Any], Body(openapi_examples=EXAMPLES)],
    response: Response,
    service: ServiceOf,
    _caller: Admin,
) -> Device:
    """Add a device.

    The body is a profile as described in docs/devices.md, with units, source and date. Its name begins with `user-`.
    """
    found = Device.from_json(service.devices.add(profile))
    response.headers["Location"] = f"/v1/devices/{found.name}"
    return found


@router.delete("/v1/devices/{name}", status_code=204)
def delete_device(name: str, service: ServiceOf, _caller: Admin) -> None:
    """Delete a device that was added. 409 for a built-in device, and while an unfinished job uses the device."""
    service.devices.delete(name)


@router.get("/v1/methods")
def list_methods(service: ServiceOf, _caller: Reader) -> MethodList:
    """List the compression methods, and the importance criteria that each method supports."""
    return MethodList(methods=[Method.from_json(method) for method in service.catalog.methods()])


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, _caller: Reader) -> Response:
    """Return metrics for Prometheus: requests, jobs by status, trials, free disk space."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/livez", status_code=204)
def live() -> None:
    """Liveness check: the server answers.

    The check ignores the database, because a restart of the server would not repair it.
    """


@router.get("/healthz")
def health(service: ServiceOf) -> Health:
    """Health check: the database answers and is not damaged, and the server runs jobs."""
    if service.damage is not None and (damage := service.damage.found()):
        raise Unhealthy(damage)
    if not service.runner.alive:
        raise Unhealthy("The part of the server that runs jobs has stopped. Restart the server.")
    return Health(status="ok", version=server_version(), jobs=service.jobs.counts(), waits=service.runner.waits)
