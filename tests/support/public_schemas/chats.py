"""Public chats: turns in a column, with their images next to them."""

from __future__ import annotations

from typing import Any

from support.public_schemas.form import MEMORY, PublicSet, stored

GITHUB = "https://github.com/"


def said(*texts: str) -> list[dict[str, str]]:
    """Return LLaVA's turns, human and gpt in turn."""
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


_CHAT_COLUMNS = "`id`, `image`, `conversations`"

_LLAVA: list[dict[str, Any]] = [
    {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": said("<image>\nWhat colour is the bus?", "It is red.", "And the sky?", "Grey."),
    },
    {
        "id": "000000052846",
        "image": "coco/train2017/000000052846.jpg",
        "conversations": said("Where is the cat?\n<image>", "On a chair."),
    },
]
_LLAVA_IMAGES = {"coco/train2017/000000033471.jpg": 0, "coco/train2017/000000052846.jpg": 1}

CHATS: tuple[PublicSet, ...] = (
    PublicSet(
        name="the_cauldron",
        columns="`images`, `texts` (`user`, `assistant`, `source`)",
        how="exchanges",
        source=MEMORY,
        rows=[
            {
                "images": [stored(0)],
                "texts": [
                    {"user": "Which bar is the tallest?\nAnswer briefly.", "assistant": "Red.", "source": "PlotQA"},
                    {"user": "And the lowest?", "assistant": "Blue.", "source": "PlotQA"},
                ],
            },
            {
                "images": [stored(1), stored(2)],
                "texts": [{"user": "Do they differ?", "assistant": "Yes.", "source": "Spot the diff"}],
            },
        ],
        told=[
            [
                "user: <0>Which bar is the tallest?\nAnswer briefly.",
                "assistant: Red.",
                "user: And the lowest?",
                "assistant: Blue.",
            ],
            ["user: <1><2>Do they differ?", "assistant: Yes."],
        ],
        unread=("texts.source",),
    ),
    PublicSet(
        name="Docmatix",
        columns="`images`, `texts` (`user`, `assistant`, `source`)",
        how="exchanges over the pages of a document",
        source=MEMORY,
        rows=[
            {
                "images": [stored(0), stored(1), stored(2)],
                "texts": [{"user": "What is the title?", "assistant": "Annual report", "source": "PDFA key: 1"}],
            }
        ],
        told=[["user: <0><1><2>What is the title?", "assistant: Annual report"]],
        unread=("texts.source",),
    ),
    PublicSet(
        name="LLaVA-Instruct-150K",
        columns=_CHAT_COLUMNS,
        how="chat",
        source=f"{GITHUB}haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md",
        file="llava_instruct_150k.json",
        rows=_LLAVA,
        images=_LLAVA_IMAGES,
        told=[
            ["user: <0>\nWhat colour is the bus?", "assistant: It is red.", "user: And the sky?", "assistant: Grey."],
            ["user: Where is the cat?\n<1>", "assistant: On a chair."],
        ],
        unread=("id",),
    ),
    PublicSet(
        name="LLaVA-v1.5-mix665k",
        columns="`id`, `image` (not in each row), `conversations`, `model`",
        how="chat, rows without an image as text",
        source=MEMORY,
        file="llava_v1_5_mix665k.json",
        rows=[
            *({**row, "model": ""} for row in _LLAVA),
            {"id": "wgByO4Y_0", "model": "", "conversations": said("Write a haiku.", "An old pond.")},
        ],
        images={f"images/{path}": number for path, number in _LLAVA_IMAGES.items()},
        told=[
            ["user: <0>\nWhat colour is the bus?", "assistant: It is red.", "user: And the sky?", "assistant: Grey."],
            ["user: Where is the cat?\n<1>", "assistant: On a chair."],
            ["user: Write a haiku.", "assistant: An old pond."],
        ],
        flag="--image_root {folder}/images",
        unread=("id", "model"),
    ),
    PublicSet(
        name="LLaVA-OneVision-Data",
        columns="`id`, `image`, `conversations`, `data_source`",
        how="chat",
        source="lmms-lab/LLaVA-OneVision-Data/commit/2e28ed02c5b4aeacad32429ea711c43c7b77d751",
        rows=[
            {
                "id": "sroie_0",
                "image": stored(0),
                "conversations": said("<image>\nRead the total.", "12.50"),
                "data_source": "sroie",
            }
        ],
        told=[["user: <0>\nRead the total.", "assistant: 12.50"]],
        unread=("id", "data_source"),
    ),
    PublicSet(
        name="ShareGPT4V",
        columns="`id`, `image`, `conversations`",
        how="chat",
        source=MEMORY,
        file="sharegpt4v_instruct_gpt4-vision_cap100k.json",
        rows=[
            {
                "id": "000000000009",
                "image": "sam/images/sa_545504.jpg",
                "conversations": said("What do you see happening in this image?\n<image>", "A man reads."),
            }
        ],
        images={"sam/images/sa_545504.jpg": 3},
        told=[["user: What do you see happening in this image?\n<3>", "assistant: A man reads."]],
        unread=("id",),
    ),
    PublicSet(
        name="ALLaVA-4V",
        columns="`id`, `image`, `conversations`, `original_caption`, `url`",
        how="chat",
        source=f"{GITHUB}FreedomIntelligence/ALLaVA/blob/main/README.md",
        file="ALLaVA-Caption-LAION-4V.json",
        rows=[
            {
                "id": "allava_laion_cap_100277305",
                "image": "allava_laion/images/100277305.jpeg",
                "conversations": said("<image>\nPlease depict the image in words.", "A silver ring."),
                "original_caption": "Palm Leaf Ring",
                "url": "https://example.com/ring.jpg",
            }
        ],
        images={"allava_laion/images/100277305.jpeg": 1},
        told=[["user: <1>\nPlease depict the image in words.", "assistant: A silver ring."]],
        telling=("original_caption",),
        unread=("id", "original_caption", "url"),
    ),
    PublicSet(
        name="Mantis-Instruct (nlvr2)",
        columns="`id`, `images`, `conversation` (`role`, `content`), `source`",
        how="chat over several images",
        source="TIGER-Lab/Mantis-Instruct/blame/11d879c91e01f75020ee89db3a4aa74846e2440e/README.md",
        rows=[
            {
                "id": "nlvr2_0",
                "images": [stored(0), stored(1)],
                "conversation": [
                    {"role": "user", "content": "<image> <image>\nBoth show a dog. True or false?"},
                    {"role": "assistant", "content": "False"},
                ],
                "source": "nlvr2",
            }
        ],
        told=[["user: <0> <1>\nBoth show a dog. True or false?", "assistant: False"]],
        unread=("id", "source"),
    ),
    PublicSet(
        name="OS-Atlas-data (training form)",
        columns="`conversations` with `<ref>` and `<box>` in its texts, `image`",
        how="chat; the boxes stay as the texts have them",
        source="OS-Copilot/OS-Atlas-data/commit/81c693fccf27b3ce7806dfce4bd696fb7acd837c",
        file="web.json",
        rows=[
            {
                "image": "web/0.png",
                "conversations": said(
                    "<image>\nLocate these elements (with bbox).\n<ref>Home</ref>",
                    "<ref>Home</ref><box>[[21,935,43,951]]</box>",
                ),
            }
        ],
        images={"web/0.png": 0},
        told=[
            [
                "user: <0>\nLocate these elements (with bbox).\n<ref>Home</ref>",
                "assistant: <ref>Home</ref><box>[[21,935,43,951]]</box>",
            ]
        ],
    ),
)
