"""What is refused before any import is what the readers would refuse: one list of suffixes in two places."""

from pathlib import Path

from vlm_lora.config.early import DATA_SUFFIXES
from vlm_lora.data.formats.tar.opening import is_tar
from vlm_lora.data.sources.files import READERS


def test_early_suffixes_are_the_readers() -> None:
    tars = {suffix for suffix in DATA_SUFFIXES if is_tar(Path(f"a{suffix}"))}
    assert set(DATA_SUFFIXES) - tars == set(READERS)
    assert tars == {".tar", ".tar.gz", ".tgz"}
    assert not is_tar(Path("a.zip")), "the control"
