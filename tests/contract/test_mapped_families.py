"""Every type that the installed transformers maps from image and text to text has a row: tried, or refused."""

from __future__ import annotations

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from support.families.page import read_results


def test_every_mapped_type_has_a_row() -> None:
    """A new release of transformers brings new types: `make families` tries those that have no row yet."""
    mapped = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert len(mapped) > 40, "the mapping is what this test reads"
    assert mapped - set(read_results()) == set()
