"""Public data sets as people load them: the columns and nesting of each, with made-up rows and what they say."""

from support.public_schemas.captions import CAPTIONS
from support.public_schemas.chats import CHATS
from support.public_schemas.choices import CHOICES
from support.public_schemas.form import PublicSet
from support.public_schemas.marked import MARKED
from support.public_schemas.originals import ORIGINALS
from support.public_schemas.questions import QUESTIONS

PUBLIC_SETS: tuple[PublicSet, ...] = (*CHATS, *QUESTIONS, *CHOICES, *CAPTIONS, *MARKED, *ORIGINALS)
"""All of them."""

BY_NAME = {one.name: one for one in PUBLIC_SETS}

MORE_THAN_IS_READ = tuple(
    BY_NAME[name] for name in ("the_cauldron", "LLaVA-OneVision-Data", "ALLaVA-4V", "MMMU", "Open-R1 multimodal")
)
"""Five sets to train on with keys that nobody reads: in turns, next to a chat, next to a question."""
