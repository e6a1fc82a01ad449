"""Names of columns and keys that are known to hold nothing a model could learn, as one table.

What a row is called, where it came from, how it was made or judged, what kind of row it is: data sets carry these for
people and programs. A name that is not here and that training does not read is never passed over: `unknown` names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_NAMES: Mapping[str, str] = {
    "its name": """
        id ids idx index indices key keys uid uuid guid qid pid sid aid iid no nr number num serial row row_number
        row_num line_number page_number hash md5 sha1 sha256 sha512 crc checksum fingerprint identifier record
        unnamed_0 level_0 index_level_0 imgid imgids docid docids sentid sentids refid cocoid objectid global_id
    """,
    "where it came from": """
        source sources origin origins data_source data_sources dataset datasets dataset_name ds_name source_dataset
        original_dataset origin_dataset origin_split corpus split splits subset subsets set_name fold partition shard
        config config_name url urls uri link links href permalink website site publisher journal license licenses
        licence licences copyright rights attribution author authors author_name creator photographer owner credit
        credits user_name username uploader annotator annotators worker workers writer file files filename filenames
        file_name file_names directory folder image_name image_names image_filename image_folder image_file_name
        img_name img_filename img_file_name img_folder image_source image_origin repository doi pmid pmcid arxiv isbn
        version revision
    """,
    "how large it is": """
        width height size sizes image_size img_size image_sizes resolution aspect_ratio area channels format mode
        extension ext mime mime_type media_type content_type duration fps file_size dpi exif cols rows iscrowd
        is_crowd
    """,
    "when it was made": """
        date dates time timestamp created created_at created_on creation_date updated updated_at modified
        last_modified date_captured image_date_captured year
    """,
    "what kind of row it is": """
        type types kind task tasks task_name task_category category categories subcategory sub_category super_category
        supercategory subtask sub_task class_type topic topics subtopic topic_difficulty subject subjects subfield
        subfields field fields domain domains discipline difficulty difficult level grade skill skills subpart lang
        langs language languages locale modality location genre program semantic operation_reasoning image_classes
        difficult_direct_answer is_balanced question_tokens status
    """,
    "how it was made or judged": """
        model models model_name generator generated_by engine temperature seed score scores rating ratings confidence
        certainty quality vote votes upvotes likes agreement perplexity similarity toxicity nsfw punsafe pwatermark
        verified reviewed human_or_machine collection_method metadata meta meta_info other_metadata formatting_ratings
        relevance_ratings visual_dependency_ratings image_correspondence_ratings relevance_min formatting_min
        visual_dependency_min image_correspondence_min finish_reason stop_reason usage cost latency
    """,
}
"""Whole names by what they say, in the form of `_plain`. `metadata` and its like hold such values by their name."""

_LAST = frozenset(
    [
        *("id", "ids", "idx", "index", "uid", "uuid", "hash", "md5", "sha256", "url", "urls", "uri", "source"),
        *("license", "licence", "width", "height", "size", "resolution", "count", "counts", "len", "length"),
        *("type", "types", "category", "score", "scores", "rating", "ratings", "confidence", "date", "time"),
        *("timestamp", "lang", "language", "version", "split", "filename", "no", "tokens_count"),
    ]
)
"""Last words of names: `question_id`, `coco_url`, `answer_type`, `image_height`."""

_FIRST = frozenset(["num", "n", "nb", "id"])
"""First words of names: `num_tokens`, `n_turns`."""

_SAYING = frozenset(["answer", "correct", "label", "gold", "gt", "target", "right", "solution", "response"])
_NUMBERS = frozenset(["idx", "index", "no"])
"""Which answer is right, by its number (`correct_choice_idx`), is no name of a row."""

_MEDIA = frozenset(["video", "videos", "audio", "audios", "sound", "mask", "masks", "depth", "segmentation"])
"""Words of names that lead to what could be shown: `video_url`."""

_KEYS = frozenset(
    [
        *("name", "tool_call_id", "detail", "cache_control", "logprobs", "annotations", "citations", "display_name"),
        *("signature", "thought_signature"),
    ]
)
"""Keys of turns and parts in addition: who speaks, and hints for the service that a request went to."""

_WHOLE = frozenset(name for names in _NAMES.values() for name in names.split())


def _plain(name: str) -> str:
    """Return a name in small letters, with one `_` between its words: `questionId` and `Question-ID` are one."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", parted).strip("_").casefold()


def holds_nothing(name: str, value: Any, *, key: bool = False) -> bool:
    """Tell whether a value under a name is known to hold nothing for training: by the name, or by all names inside it.

    Args:
        name: of a column, or of a key of a turn or part.
        value: what it holds.
        key: whether it is a key inside a chat.
    """
    inside = isinstance(value, Mapping) and bool(value)
    return is_harmless(name, key=key) or (inside and all(holds_nothing(str(k), v) for k, v in value.items()))


@lru_cache(maxsize=4096)
def is_harmless(name: str, *, key: bool = False) -> bool:
    """Tell whether a column, or a key of a turn or part, is known by its name to hold nothing for training.

    Args:
        name: as the data has it.
        key: whether it is a key inside a chat.
    """
    plain = _plain(name)
    words = plain.split("_")
    if not plain or plain in _WHOLE or (key and plain in _KEYS):
        return True
    if len(words) < 2 or not _MEDIA.isdisjoint(words) or (words[-1] in _NUMBERS and not _SAYING.isdisjoint(words)):
        return False
    return words[-1] in _LAST or words[0] in _FIRST
