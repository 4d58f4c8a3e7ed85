"""The devices that users add to a server.

A user adds a profile, which is one file. The profile is checked before it is stored and never changes afterwards.
Devices with an agent are in the same folder; service/api/agents.py writes their files.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from latency.devices.devices import AGENT, PROFILES, describe_file, describe_profile
from latency.devices.mailbox import Mailbox
from latency.devices.profile_schema import parse_profile
from models.errors import InvalidRequest
from service.core.errors import Conflict, NotFound, in_use
from service.db.job_states import UNFINISHED
from service.db.tables import JobRow, Store

PREFIX = "user-"
"""The names of users' profiles start with this prefix.

The names of built-in profiles do not, so an update of vitfit never conflicts with a user's profile.
"""


class DeviceShelf:
    def __init__(
        self, store: Store, folder: Path, tables: Path, offered: Callable[[], Sequence[dict[str, Any]]]
    ) -> None:
        """Manage the devices in a folder.

        Args:
            store: the database, which says which devices unfinished jobs use.
            folder: the folder of the added devices.
            tables: the folder of the fitted latency tables.
            offered: returns the devices of the engine.
        """
        self._store, self._folder, self._tables, self._offered = store, folder, tables, offered

    def all(self) -> list[dict[str, Any]]:
        """Describe all devices: those of the engine and those that users have added."""
        added = [describe_file(path) for path in sorted(self._folder.glob("*.json"))]
        return [self._with_tables(device) for device in [*self._offered(), *added]]

    def _with_tables(self, device: dict[str, Any]) -> dict[str, Any]:
        """Add the names of the fitted latency tables to the description of a measured device.

        There is one table per network and setting.
        """
        if device["kind"] == "profile":
            return device
        return {**device, "tables": sorted(path.stem for path in self._tables.glob(f"{device['name']}-*.json"))}

    def add(self, document: dict[str, Any]) -> dict[str, Any]:
        """Check and store a profile, and return its description.

        Raises: InvalidRequest when a field is missing or out of range; Conflict when the name is taken.
        """
        profile = parse_profile(document)
        if not profile.name.startswith(PREFIX):
            raise InvalidRequest(
                f"The name {profile.name!r} is not allowed. The name of an added device must begin with {PREFIX!r}.",
                field="name",
                value=profile.name,
            )
        target = self._folder / f"{profile.name}.json"
        beside = self._folder / f".{profile.name}.{os.getpid()}.part"
        beside.write_text(profile.model_dump_json(indent=1))
        try:
            os.link(beside, target)  # atomic, and fails if the name is taken
        except FileExistsError:
            raise Conflict(
                f"There is already a device {profile.name!r}, and results refer to it by this name. "
                "Delete it first, or use another name.",
                device=profile.name,
            ) from None
        finally:
            beside.unlink()
        return describe_profile(profile.model_dump(mode="json"))

    def delete(self, name: str) -> None:
        """Delete an added device.

        Raises: NotFound; Conflict for a built-in device, and while an unfinished job uses it.
        """
        if (PROFILES / f"{name}.json").exists() or name == "cpu":
            raise Conflict(
                f"The device {name!r} is a part of vitfit and cannot be deleted. Only added devices can be deleted.",
                device=name,
            )
        path = self._folder / f"{name}.json"
        if name not in {path.stem for path in self._folder.glob("*.json")}:
            raise NotFound("device", name, [str(device["name"]) for device in self.all()])
        with self._store.read() as session:
            jobs = session.execute(select(JobRow.id, JobRow.request).where(JobRow.status.in_(UNFINISHED)))
            users = [job for job, request in jobs if any(b["device"] == name for b in request["budgets"])]
        if users:
            raise in_use("device", name, users)
        path.unlink()
        if name.startswith(f"{AGENT}-"):
            Mailbox(path.with_suffix("")).delete()
