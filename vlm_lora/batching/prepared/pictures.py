"""Images that are decoded only when somebody asks for their pixels, and that know which image they are.

An image file is known by the hash of its bytes. Size and hash of its pixels are kept next to what was made of it, so
that a row whose tensors are there is encoded without decoding anything.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from functools import partial
from hashlib import blake2b, file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL import __version__ as pillow_version

from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.data.conversation import ImageSource, Url
from vlm_lora.data.images.urls import kept_file
from vlm_lora.errors import ImageError

Size = tuple[int, int]


class LazyPicture(Image.Image):
    """An RGB image of known size whose pixels are made when they are first asked for.

    Args:
        size: width and height in pixels.
        identity: tells it from every other image, and from itself at another size; None where nothing does.
        pixels: 16 bytes, the hash of its pixels; None where it is not known.
        decode: makes it.
    """

    def __init__(
        self, size: Size, *, identity: str | None, pixels: bytes | None, decode: Callable[[], Image.Image]
    ) -> None:
        super().__init__()
        self._mode = "RGB"
        self._size = size
        self.identity = identity
        self.pixels = pixels
        self._decode = decode
        self._decoded: Image.Image | None = None

    def decoded(self) -> Image.Image:
        """Return the image itself.

        Raises:
            ImageError: it cannot be read any more.
        """
        if self._decoded is None:
            self._decoded = self._decode()
        return self._decoded

    def load(self) -> Any:
        """Make the pixels, which all of Pillow's methods do first."""
        self.im = self.decoded().im
        return super().load()

    def resize(self, size: Any, resample: int | None = None, *args: Any, **kwargs: Any) -> Image.Image:
        """Return the image at another size, made when its pixels are asked for."""
        if args or kwargs:
            return self.decoded().resize(size, resample, *args, **kwargs)
        identity = None if self.identity is None else f"{self.identity} {tuple(size)} {resample}"
        return LazyPicture(
            tuple(size), identity=identity, pixels=None, decode=lambda: self.decoded().resize(size, resample)
        )


def pixel_digest(picture: Image.Image) -> bytes:
    """Return a hash of an image's pixels, 16 bytes."""
    known = picture.pixels if isinstance(picture, LazyPicture) else None
    return blake2b(picture.tobytes(), digest_size=16).digest() if known is None else known


class Pictures:
    """Opens images, each decoded at most once by whoever shares the store. Can be pickled.

    Args:
        store: where sizes and hashes of pixels are kept.
        limits: what is refused of an image; with other limits nothing is known of it yet.
    """

    def __init__(self, store: TensorStore, limits: Any) -> None:
        self._store = store
        self._limits = limits
        self._digests: dict[tuple[str, int, int, int], str] = {}

    def open(self, source: ImageSource, decode: Callable[[], Image.Image]) -> Image.Image:
        """Return an image, decoded only where nothing is known of it.

        Args:
            source: where it is.
            decode: loads it.

        Raises:
            ImageError: it cannot be read.
        """
        digest = self.digest(source)
        if digest is None:
            return decode()
        key = sha256(json.dumps(["picture 1", digest, repr(self._limits), pillow_version]).encode()).hexdigest()
        known = self._store.get(key)
        if known is not None:
            width, height = known["size"].tolist()
            pixels = known["pixels"].numpy().tobytes()
            return LazyPicture(
                (width, height), identity=digest, pixels=pixels, decode=partial(self._again, source, digest, decode)
            )
        picture = decode()
        if self.digest(source) != digest:  # the file was changed while it was read
            return picture
        pixels = pixel_digest(picture)
        kept = {"size": torch.tensor(picture.size), "pixels": torch.frombuffer(bytearray(pixels), dtype=torch.uint8)}
        self._store.put(key, kept)
        return LazyPicture(picture.size, identity=digest, pixels=pixels, decode=lambda: picture)

    def _again(self, source: ImageSource, digest: str, decode: Callable[[], Image.Image]) -> Image.Image:
        """Decode an image whose size was known.

        Raises:
            ImageError: it cannot be read, or is another one by now.
        """
        picture = decode()
        if self.digest(source) != digest:
            raise ImageError(f"{source!s}: the image was changed while the run reads it. Start the run again.")
        return picture

    def digest(self, source: ImageSource) -> str | None:
        """Return the hash of an encoded image's bytes; None where there are none, or none that can be read."""
        if isinstance(source, bytes):
            return sha256(source).hexdigest()
        path = kept_file(source) if isinstance(source, Url) else source
        if not isinstance(path, Path):
            return None
        try:
            with open(path, "rb", opener=_without_waiting) as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size > self._limits.max_bytes:
                    return None
                name = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
                if name not in self._digests:
                    self._digests[name] = file_digest(stream, "sha256").hexdigest()
                return self._digests[name]
        except OSError:  # the loader says what is wrong
            return None


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)
