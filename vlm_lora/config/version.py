"""The version, in one place, and those of installed packages; neither imports a package."""

from functools import cache

__version__ = "0.1.0"


@cache
def version_of(package: str) -> str:
    """Return an installed package's version; it stays what it is while the process runs.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    from importlib.metadata import version

    return version(package)
