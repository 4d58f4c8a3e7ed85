"""Opens the storage that the settings name. This is the only module that imports both kinds of storage."""

from service.core.data_folder import DataFolder
from service.core.settings import Settings
from service.storage.base import Storage
from service.storage.local_folder import LocalStorage


def open_storage(settings: Settings) -> Storage:
    """Return the storage that the settings name.

    This does not contact the storage; `Storage.check` does. Raises: StorageUnusable when a package is missing.
    """
    folder = DataFolder(settings.data)
    if settings.storage_url is None:
        return LocalStorage(folder)
    from service.storage.bucket import Bucket  # imported only here, because its packages are optional

    return Bucket(settings.storage_url, folder.cache, settings.cache_bytes)
