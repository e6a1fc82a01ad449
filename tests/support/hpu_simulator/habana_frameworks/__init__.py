"""A stand-in for the vendor's package, over a CPU-backed device. It is no Gaudi software."""


def __autoload() -> None:
    """Load the device when torch is imported, as the vendor's wheel does."""
    import habana_frameworks.torch  # noqa: F401
