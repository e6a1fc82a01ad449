"""Images as the content parts of several services' requests hold them, unwrapped to one value.

- OpenAI: `{"type": "image_url", "image_url": {"url": ..., "detail": ...}}`
- Anthropic: `{"type": "image", "source": {"type": "base64", "media_type": ..., "data": ...}}`, or of type `url`
- Bedrock's Converse: `{"image": {"format": "png", "source": {"bytes": ...}}}`
- Gemini: `{"inline_data": {"mime_type": ..., "data": ...}}`, `{"file_data": {"file_uri": ...}}`, also as `inlineData`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ADDRESSES = ("url", "file_uri", "fileUri")
_TYPES = ("media_type", "mime_type", "mimeType")


def unwrapped(value: Any, around: Mapping[str, Any]) -> Any:
    """Return an image's bytes, address or text out of the objects around it.

    Args:
        value: what stands under a part's key.
        around: the object that it stands in, which may say of what type base64 text is.
    """
    if isinstance(value, Mapping):
        inner = value.get("source")
        if inner is not None:
            return unwrapped(inner, value)
        address = next((value[key] for key in _ADDRESSES if isinstance(value.get(key), str)), None)
        if address is not None:
            return address
        held = next((value[key] for key in ("data", "bytes") if value.get(key) is not None), None)
        # Base64 text that is said to be one; {"bytes", "path"} as Arrow stores images has bytes.
        return value if held is None or not isinstance(held, str) else _data_uri(held, {**around, **value})
    if isinstance(value, str) and around.get("data") == value:
        return _data_uri(value, around)
    return value


def _data_uri(text: str, around: Mapping[str, Any]) -> str:
    """Return base64 text as a data URI, which says that it is an image."""
    if text.startswith("data:"):
        return text
    said = next((around[key] for key in _TYPES if isinstance(around.get(key), str)), None)
    kind = said or f"image/{around.get('format') or 'png'}"
    return f"data:{kind};base64,{text}"
