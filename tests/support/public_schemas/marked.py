"""Public data in which something is marked: boxes, points, words with boxes, documents as JSON, preferred answers."""

from __future__ import annotations

import json

from support.public_schemas.form import MEMORY, PublicSet, stored

_RECEIPT = {"menu": [{"nm": "Latte", "cnt": "1", "price": "4.50"}], "total": {"total_price": "4.50"}}

MARKED: tuple[PublicSet, ...] = (
    PublicSet(
        name="CPPE-5",
        columns="`image_id`, `image`, `width`, `height`, `objects` (`id`, `area`, `bbox`, `category`)",
        how="boxes",
        source="https://github.com/huggingface/datasets/blob/040102f100964a33fd334e2695f1c493fa6b92db/datasets/cppe-5/README.md",
        rows=[
            {
                "image_id": 15,
                "image": stored(0),
                "width": 96,
                "height": 64,
                "objects": {
                    "id": [114, 115],
                    "area": [50, 135],
                    "bbox": [[2.0, 3.0, 10.0, 5.0], [50.0, 40.0, 15.0, 9.0]],
                    "category": [4, 0],
                },
            }
        ],
        labels={"objects.category": ["Coverall", "Face_Shield", "Gloves", "Goggles", "Mask"]},
        told=[
            [
                'user: <0>Find every object in the picture. Answer with a JSON list of {"bbox_2d": [x1, y1, x2, y2], '
                '"label": "..."}, in pixels.',
                'assistant: [{"bbox_2d": [2, 3, 12, 8], "label": "Mask"}, '
                '{"bbox_2d": [50, 40, 65, 49], "label": "Coverall"}]',
            ]
        ],
        unread=("image_id", "objects.id", "objects.area"),
    ),
    PublicSet(
        name="CORD v2",
        columns="`image`, `ground_truth` (JSON text with `gt_parse`, `meta`, `valid_line`, ...)",
        how="the question that is typed, `gt_parse` as JSON",
        source="https://github.com/clovaai/donut/blob/master/README.md",
        rows=[
            {
                "image": stored(1),
                "ground_truth": json.dumps(
                    {
                        "gt_parse": _RECEIPT,
                        "meta": {"version": "2.0.0", "split": "train", "image_id": 0},
                        "valid_line": [{"words": [], "category": "menu.nm", "group_id": 3}],
                        "roi": {},
                        "repeating_symbol": [],
                        "dontcare": [],
                    }
                ),
            }
        ],
        flag='--default_prompt "Read the receipt as JSON."',
        told=[["user: <1>Read the receipt as JSON.", f"assistant: {json.dumps(_RECEIPT)}"]],
        unread=("ground_truth.meta", "ground_truth.valid_line"),
    ),
    PublicSet(
        name="FUNSD",
        columns="`id`, `tokens` (or `words`), `bboxes`, `ner_tags`, `image`",
        how="use a form with an `answer`: the tags of words are no text",
        source="https://github.com/microsoft/unilm/blob/master/layoutlmft/layoutlmft/data/datasets/funsd.py",
        rows=[
            {
                "id": "0",
                "tokens": ["Date:", "1/8/93"],
                "bboxes": [[383, 91, 493, 175], [287, 316, 295, 327]],
                "ner_tags": [3, 5],
                "image": stored(0),
            }
        ],
        labels={"ner_tags": ["O", "B-HEADER", "I-HEADER", "B-QUESTION", "I-QUESTION", "B-ANSWER", "I-ANSWER"]},
        refused="'ner_tags' holds a tag for each word",
    ),
    PublicSet(
        name="SROIE (words with tags)",
        columns="`id`, `words`, `bboxes`, `ner_tags`, `image_path`",
        how="use a form with an `answer`, such as the receipt's fields as JSON",
        source=MEMORY,
        rows=[
            {
                "id": "0",
                "words": ["TOTAL", "9.00"],
                "bboxes": [[10, 20, 30, 40], [50, 20, 70, 40]],
                "ner_tags": [0, 7],
                "image_path": "images/X00016469612.jpg",
            }
        ],
        images={"images/X00016469612.jpg": 0},
        labels={"ner_tags": ["O", "B-COMPANY", "I-COMPANY", "B-DATE", "I-DATE", "B-ADDRESS", "I-ADDRESS", "B-TOTAL"]},
        refused="'ner_tags' holds a tag for each word",
    ),
    PublicSet(
        name="RefCOCO (lmms-lab)",
        columns="`question_id`, `image`, `question`, `answer` (a list), `segmentation`, `bbox`, `iscrowd`, `file_name`",
        how="write the region into the question, or each box as an answer",
        source="lmms-lab/RefCOCO/blob/e15256ece129a21d62e216f95f98ba2e808f96a0/README.md",
        rows=[
            {
                "question_id": "0",
                "image": stored(0),
                "question": "Please provide a short description for this region.",
                "answer": ["the red bar", "left one"],
                "segmentation": [2.0, 3.0, 12.0, 3.0, 12.0, 8.0],
                "bbox": [2.0, 3.0, 10.0, 5.0],
                "iscrowd": 0,
                "file_name": "COCO_train2014_000000581857_16.jpg",
            }
        ],
        refused="'bbox' holds a box for each row",
    ),
    PublicSet(
        name="RefCOCO (jxu124)",
        columns="`sent_ids`, `file_name`, `ann_id`, `ref_id`, `image_id`, `split`, `sentences`, `category_id`, "
        "`raw_anns`, `raw_image_info`, `raw_sentences`, `image_path`, `bbox`, `captions`, `global_image_id`, `anns_id`",
        how="write a question and an answer for each expression",
        source="jxu124/refcoco/blob/main/README.md",
        rows=[
            {
                "sent_ids": [0, 1],
                "file_name": "COCO_train2014_000000581857_16.jpg",
                "ann_id": 1719310,
                "ref_id": 0,
                "image_id": 581857,
                "split": "train",
                "sentences": [{"raw": "The red bar", "sent": "the red bar", "sent_id": 0, "tokens": ["the", "red"]}],
                "category_id": 1,
                "raw_anns": json.dumps({"area": 50.0, "bbox": [2, 3, 10, 5]}),
                "raw_image_info": json.dumps({"height": 64, "width": 96}),
                "raw_sentences": json.dumps([{"raw": "The red bar"}]),
                "image_path": "coco/train2014/COCO_train2014_000000581857.jpg",
                "bbox": [2.0, 3.0, 12.0, 8.0],
                "captions": ["the red bar", "left one"],
                "global_image_id": "coco.581857",
                "anns_id": "1719310",
            }
        ],
        images={"coco/train2014/COCO_train2014_000000581857.jpg": 0},
        refused="'bbox' holds a box for each row",
    ),
    PublicSet(
        name="ScreenSpot",
        columns="`file_name`, `bbox` (0 to 1), `instruction`, `data_type`, `data_source`, `image`",
        how="write the box as an answer, or as `objects`",
        source="rootsautomation/ScreenSpot/blob/main/README.md",
        rows=[
            {
                "file_name": "mobile_1.png",
                "bbox": [0.5, 0.25, 0.75, 0.5],
                "instruction": "open the settings",
                "data_type": "icon",
                "data_source": "ios",
                "image": stored(0),
            }
        ],
        refused="'bbox' holds a box for each row",
    ),
    PublicSet(
        name="PixMo-Points",
        columns="`image_url`, `image_sha256`, `points` (`x`, `y`), `count`, `label`, `collection_method`",
        how="write the points into an answer",
        source="allenai/pixmo-points/blob/main/README.md",
        rows=[
            {
                "image_url": "0.png",
                "image_sha256": "ab12",
                "points": [{"x": 10.2, "y": 74.1}, {"x": 20.5, "y": 31.0}],
                "count": 2,
                "label": "bars",
                "collection_method": "pointing",
            }
        ],
        images={"0.png": 0},
        refused="'points' holds points in the image",
    ),
    PublicSet(
        name="RLAIF-V",
        columns="`ds_name`, `image`, `question`, `chosen`, `rejected`, `origin_dataset`, `origin_split`, `idx`, "
        "`image_path`",
        how="pairs of answers to prefer one of",
        source="openbmb/RLAIF-V-Dataset/blob/76b265df5934e3eeb62006da517045dbab353616/README.md",
        rows=[
            {
                "ds_name": "RLAIF-V",
                "image": stored(1),
                "question": "Who are they?",
                "chosen": "Two men.",
                "rejected": "Two cats.",
                "origin_dataset": "VQAv2",
                "origin_split": '{"model": "x", "type": "question answering"}',
                "idx": "0",
                "image_path": "VQAv2/0.jpg",
            }
        ],
        refused="'chosen' and 'rejected' hold answers of which one is preferred",
    ),
    PublicSet(
        name="PubTabNet",
        columns="`filename`, `split`, `imgid`, `html` (`structure`, `cells`)",
        how="join the tokens to the table's HTML first",
        source="https://github.com/ibm-aur-nlp/PubTabNet/blob/master/README.md",
        file="PubTabNet_2.0.0.jsonl",
        rows=[
            {
                "filename": "PMC4840965_004_00.png",
                "split": "train",
                "imgid": 548625,
                "html": {
                    "structure": {"tokens": ["<thead>", "<tr>", "<td>", "</td>", "</tr>", "</thead>"]},
                    "cells": [{"tokens": ["<b>", "1", "</b>"], "bbox": [66, 4, 95, 13]}],
                },
            }
        ],
        images={"PMC4840965_004_00.png": 0},
        refused="'html' holds a table in pieces",
    ),
    PublicSet(
        name="PubTabNet_OTSL",
        columns="`filename`, `split`, `imgid`, `dataset`, `cells`, `otsl`, `html`, `html_restored`, `cols`, `rows`, "
        "`html_len`, `otsl_len`, `image`",
        how="join the tokens to the table's text first",
        source="docling-project/PubTabNet_OTSL/commit/e27c63f347173be33c58ff38002ba40d57474242",
        rows=[
            {
                "filename": "PMC4840965_004_00.png",
                "split": "train",
                "imgid": 548625,
                "dataset": "pubtabnet",
                "cells": [[{"tokens": ["1"], "bbox": [1, 4, 95, 13]}]],
                "otsl": ["fcel", "nl"],
                "html": ["<tr>", "<td>", "</td>", "</tr>"],
                "html_restored": ["<tr>", "<td>", "</td>", "</tr>"],
                "cols": 1,
                "rows": 1,
                "html_len": 4,
                "otsl_len": 2,
                "image": stored(0),
            }
        ],
        refused="'html' holds a table in pieces",
    ),
    PublicSet(
        name="Visual Genome (region_descriptions)",
        columns="`image`, `image_id`, `url`, `width`, `height`, `coco_id`, `flickr_id`, `regions` (`phrase`, `x`, `y`, "
        "`width`, `height`, ...)",
        how="a row for each phrase, or boxes as `objects`",
        source="https://github.com/huggingface/datasets/blob/040102f100964a33fd334e2695f1c493fa6b92db/datasets/visual_genome/README.md",
        rows=[
            {
                "image": stored(1),
                "image_id": 1,
                "url": "https://example.com/1.jpg",
                "width": 96,
                "height": 64,
                "coco_id": None,
                "flickr_id": None,
                "regions": [
                    {"region_id": 1382, "image_id": 1, "phrase": "a bar", "x": 4, "y": 5, "width": 8, "height": 13}
                ],
            }
        ],
        refused="'regions' holds several questions or texts for each row",
    ),
)
