"""Objects in buckets and folders: open by URI, create-only put, bulk put, ranged get, list."""

from unbroken.store.dated import Dated
from unbroken.store.direct import ReadsInto
from unbroken.store.store import ObjectInfo, Store
from unbroken.store.uri import StoreURI, open_store, parse_uri

__all__ = ["Dated", "ObjectInfo", "ReadsInto", "Store", "StoreURI", "open_store", "parse_uri"]
