"""Public data sets as people load them: the columns and nesting of each, with made-up rows and what they say."""

from support.public_schemas.chats import CHATS
from support.public_schemas.choices import CHOICES
from support.public_schemas.form import PublicSet
from support.public_schemas.marked import MARKED
from support.public_schemas.originals import ORIGINALS
from support.public_schemas.questions import QUESTIONS

PUBLIC_SETS: tuple[PublicSet, ...] = (*CHATS, *QUESTIONS, *CHOICES, *MARKED, *ORIGINALS)
"""All of them."""

BY_NAME = {one.name: one for one in PUBLIC_SETS}
