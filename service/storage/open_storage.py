"""Chooses the storage that the settings name. The only file that knows both kinds."""

from service.core.data_folder import DataFolder
from service.core.settings import Settings
from service.storage.base import Storage
from service.storage.local_folder import LocalStorage


def open_storage(settings: Settings) -> Storage:
    """Nothing is asked yet: see `Storage.check`. Raises: StorageUnusable when a package is missing."""
    folder = DataFolder(settings.data)
    if settings.storage_url is None:
        return LocalStorage(folder)
    from service.storage.bucket import Bucket  # its packages are an extra

    return Bucket(settings.storage_url, folder.cache, settings.cache_bytes)
