"""Public questions and answers."""

from __future__ import annotations

import base64
import json

from support.public_schemas.form import MEMORY, SEEN, PublicSet, picture, stored

_TEN = [{"answer": text, "answer_confidence": "yes", "answer_id": place} for place, text in enumerate(["net", "web"])]

QUESTIONS: tuple[PublicSet, ...] = (
    PublicSet(
        name="DocVQA",
        columns="`questionId`, `question`, `question_types`, `image`, `docId`, `ucsf_document_id`, "
        "`ucsf_document_page_no`, `answers`, `data_split`",
        how="question, first of the answers",
        source="lmms-lab/DocVQA/blob/59fed3cdc38662abeef8f363171b2ec7c95c165c/README.md",
        rows=[
            {
                "questionId": "337",
                "question": "What is the date?",
                "question_types": ["handwritten", "form"],
                "image": stored(0),
                "docId": 279,
                "ucsf_document_id": "xnbl0037",
                "ucsf_document_page_no": "1",
                "answers": ["1/8/93", "1/8/1993"],
                "data_split": "train",
            }
        ],
        told=[["user: <0>What is the date?", "assistant: 1/8/93"]],
        unread=("questionId", "question_types", "docId", "ucsf_document_id", "ucsf_document_page_no", "data_split"),
    ),
    PublicSet(
        name="InfographicVQA",
        columns="`questionId`, `question`, `answers`, `answer_type`, `image`, `image_url`, `operation/reasoning`, "
        "`ocr`, `data_split`",
        how="question, first of the answers",
        source="manu/training_vqa/blob/main/README.md",
        rows=[
            {
                "questionId": "70040",
                "question": "How many users are under 35?",
                "answers": ["62%"],
                "answer_type": ["single span"],
                "image": stored(1),
                "image_url": "https://example.com/infographic.png",
                "operation/reasoning": ["arithmetic"],
                "ocr": json.dumps({"PAGE": [{"BlockType": "PAGE"}], "LINE": [{"Text": "62%"}], "WORD": []}),
                "data_split": "train",
            }
        ],
        told=[["user: <1>How many users are under 35?", "assistant: 62%"]],
        telling=("ocr",),
        unread=("questionId", "answer_type", "image_url", "operation/reasoning", "ocr", "data_split"),
    ),
    PublicSet(
        name="DocVQA with OCR (pixparse)",
        columns="`image`, `question_id`, `question`, `answers`, `data_split`, `ocr_results`, `other_metadata`",
        how="question, first of the answers",
        source="pixparse/docvqa-single-page-questions/blob/main/README.md",
        rows=[
            {
                "image": stored(2),
                "question_id": 337,
                "question": "What is the date?",
                "answers": ["1/8/93"],
                "data_split": "train",
                "ocr_results": {
                    "page": 1,
                    "clockwise_orientation": 0.4,
                    "width": 96,
                    "height": 64,
                    "unit": "pixel",
                    "lines": [
                        {
                            "bounding_box": [1, 2, 30, 2, 30, 9, 1, 9],
                            "text": "1/8/93",
                            "words": [
                                {"bounding_box": [1, 2, 30, 2, 30, 9, 1, 9], "text": "1/8/93", "confidence": None}
                            ],
                        }
                    ],
                },
                "other_metadata": {"ucsf_document_id": "xnbl0037", "doc_id": 279, "image": "documents/xnbl0037_1.png"},
            }
        ],
        flag="--response_column answers",
        told=[["user: <2>What is the date?", "assistant: 1/8/93"]],
        unread=("question_id", "data_split", "ocr_results", "other_metadata"),
    ),
    PublicSet(
        name="ChartQA",
        columns="`image`, `query`, `label`, `human_or_machine`",
        how="question, answer",
        source=MEMORY,
        rows=[{"image": stored(0), "query": "How many bars?", "label": ["4"], "human_or_machine": 0}],
        labels={"human_or_machine": ["human", "machine"]},
        told=[["user: <0>How many bars?", "assistant: 4"]],
        unread=("human_or_machine",),
    ),
    PublicSet(
        name="ChartQA (original)",
        columns="`imgname`, `query`, `label`; images in `png/`",
        how="question, answer",
        source=SEEN,
        file="train_human.json",
        rows=[
            {"imgname": "41699051005347.png", "query": "How many bars?", "label": "4"},
            {"imgname": "41810321001157.png", "query": "Which is red?", "label": "The first"},
        ],
        images={"png/41699051005347.png": 0, "png/41810321001157.png": 1},
        flag="--image_root {folder}/png",
        told=[["user: <0>How many bars?", "assistant: 4"], ["user: <1>Which is red?", "assistant: The first"]],
    ),
    PublicSet(
        name="TextVQA",
        columns="`image_id`, `question_id`, `question`, `question_tokens`, `image`, `image_width`, `image_height`, "
        "`flickr_original_url`, `flickr_300k_url`, `answers`, `image_classes`, `set_name`, `ocr_tokens`",
        how="question, first of the answers",
        source="pppop7/textvqa/blob/main/README.md",
        rows=[
            {
                "image_id": "0054c91397f2fe05",
                "question_id": 0,
                "question": "what is the brand of phone?",
                "question_tokens": ["what", "is", "the", "brand", "of", "phone"],
                "image": stored(0),
                "image_width": 1024,
                "image_height": 730,
                "flickr_original_url": "https://example.com/o.jpg",
                "flickr_300k_url": "https://example.com/z.jpg",
                "answers": ["nokia", "nokia", "toshiba"],
                "image_classes": ["Belt", "Headphones"],
                "set_name": "train",
                "ocr_tokens": ["MIA", "NOKIA"],
            }
        ],
        told=[["user: <0>what is the brand of phone?", "assistant: nokia"]],
        telling=("ocr_tokens",),
        unread=(
            *("image_id", "question_id", "question_tokens", "image_width", "image_height", "flickr_original_url"),
            *("flickr_300k_url", "image_classes", "set_name", "ocr_tokens"),
        ),
    ),
    PublicSet(
        name="VQAv2",
        columns="`question_type`, `multiple_choice_answer`, `answers` (`answer`, `answer_confidence`, `answer_id`), "
        "`image_id`, `answer_type`, `question_id`, `question`, `image`",
        how="question, first of the answers",
        source="lmms-lab/VQAv2/blob/main/README.md",
        rows=[
            {
                "question_type": "what is this",
                "multiple_choice_answer": "net",
                "answers": _TEN,
                "image_id": 458752,
                "answer_type": "other",
                "question_id": 458752000,
                "question": "What is this photo taken looking through?",
                "image": stored(3),
            }
        ],
        told=[["user: <3>What is this photo taken looking through?", "assistant: net"]],
        telling=("multiple_choice_answer",),
        unread=("question_type", "multiple_choice_answer", "image_id", "answer_type", "question_id"),
    ),
    PublicSet(
        name="OK-VQA",
        columns="`question_id`, `image`, `question`, `answers`, `question_type`, `answer_type`",
        how="question, first of the answers",
        source="lmms-lab/OK-VQA/blob/main/README.md",
        rows=[
            {
                "question_id": "2971475",
                "image": stored(1),
                "question": "What sport can you use this for?",
                "answers": ["race", "race", "motocross"],
                "question_type": "five",
                "answer_type": "other",
            }
        ],
        told=[["user: <1>What sport can you use this for?", "assistant: race"]],
        unread=("question_id", "question_type", "answer_type"),
    ),
    PublicSet(
        name="OCRBench",
        columns="`dataset`, `question`, `question_type`, `answer` (a list), `image`",
        how="question, first of the answers",
        source="echo840/OCRBench/blob/main/README.md",
        rows=[
            {
                "dataset": "IIIT5K",
                "question": "what is written in the image?",
                "question_type": "Regular Text Recognition",
                "answer": ["CENTRE"],
                "image": stored(2),
            }
        ],
        told=[["user: <2>what is written in the image?", "assistant: CENTRE"]],
        unread=("dataset", "question_type"),
    ),
    PublicSet(
        name="VQA-RAD",
        columns="`image`, `question`, `answer`",
        how="question, answer",
        source="flaviagiammarino/vqa-rad/commit/0be11a5dbdd87e29586d0c9028153cb4f44dc877",
        rows=[{"image": stored(0), "question": "are regions of the brain infarcted?", "answer": "yes"}],
        told=[["user: <0>are regions of the brain infarcted?", "assistant: yes"]],
    ),
    PublicSet(
        name="PathVQA",
        columns="`image`, `question`, `answer`",
        how="question, answer",
        source="flaviagiammarino/path-vqa/blob/dd0d9debb4f6ac03277cc191c69cb229324844fb/README.md",
        rows=[{"image": stored(1), "question": "where are liver stem cells located?", "answer": "in the canals"}],
        told=[["user: <1>where are liver stem cells located?", "assistant: in the canals"]],
    ),
    PublicSet(
        name="SLAKE",
        columns="`img_id`, `img_name`, `question`, `answer`, `q_lang`, `location`, `modality`, `answer_type`, "
        "`base_type`, `content_type`, `triple`, `qid`; images in `imgs/`",
        how="question, answer",
        source="michel-ducartier/SLAKE_binary/blob/main/README.md",
        file="train.json",
        rows=[
            {
                "img_id": 1,
                "img_name": "xmlab1/source.jpg",
                "question": "What modality is used?",
                "answer": "MRI",
                "q_lang": "en",
                "location": "Abdomen",
                "modality": "MRI",
                "answer_type": "OPEN",
                "base_type": "vqa",
                "content_type": "Modality",
                "triple": ["vhead", "_", "_"],
                "qid": 0,
            }
        ],
        images={"imgs/xmlab1/source.jpg": 0},
        flag="--image_root {folder}/imgs",
        told=[["user: <0>What modality is used?", "assistant: MRI"]],
        telling=("triple",),
        unread=(
            *("img_id", "q_lang", "location", "modality", "answer_type", "base_type", "content_type", "triple"),
            "qid",
        ),
    ),
    PublicSet(
        name="GQA (questions with the image)",
        columns="`id`, `image`, `question`, `answer`, `fullAnswer`, `isBalanced`, `groups`, `entailed`, `equivalent`, "
        "`types`, `annotations`, `semantic`, `semanticStr`",
        how="question, short answer",
        source="ahmedheakl/arabic_gqa/blob/51285a648efa459e5c637798f915de7e664e81e6/README.md",
        rows=[
            {
                "id": "02930152",
                "image": stored(0),
                "question": "Is the sky dark?",
                "answer": "yes",
                "fullAnswer": "Yes, the sky is dark.",
                "isBalanced": True,
                "groups": {"global": None, "local": "06-sky_dark"},
                "entailed": "['02930160']",
                "equivalent": "['02930152']",
                "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
                "annotations": {"answer": [], "fullAnswer": [{"objectId": "2", "value": "sky"}], "question": []},
                "semantic": [{"argument": "sky (2486325)", "dependencies": [0], "operation": "select"}],
                "semanticStr": "select: sky (2486325)->verify color: dark [0]",
            }
        ],
        told=[["user: <0>Is the sky dark?", "assistant: yes"]],
        telling=("fullAnswer", "groups", "entailed", "equivalent", "annotations", "semanticStr"),
        unread=(
            *("id", "fullAnswer", "isBalanced", "groups", "entailed", "equivalent", "types", "annotations"),
            *("semantic", "semanticStr"),
        ),
    ),
    PublicSet(
        name="Visual Genome (question_answers)",
        columns="`image`, `image_id`, `url`, `width`, `height`, `coco_id`, `flickr_id`, "
        "`qas` (`question`, `answer`, ...)",
        how="exchanges",
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
                "qas": [
                    {
                        "qa_id": 986768,
                        "image_id": 1,
                        "question": "What colour is the clock?",
                        "answer": "Green.",
                        "a_objects": [],
                        "q_objects": [],
                    },
                    {
                        "qa_id": 986777,
                        "image_id": 1,
                        "question": "Where is it?",
                        "answer": "On a pole.",
                        "a_objects": [{"object_id": 1058498, "synsets": ["pole.n.01"]}],
                        "q_objects": [],
                    },
                ],
            }
        ],
        told=[
            [
                "user: <1>What colour is the clock?",
                "assistant: Green.",
                "user: Where is it?",
                "assistant: On a pole.",
            ]
        ],
        telling=("qas.a_objects",),
        unread=("image_id", "url", "width", "height", "qas.qa_id", "qas.image_id", "qas.a_objects"),
    ),
    PublicSet(
        name="OCR-VQA",
        columns="`image`, `image_id`, `questions`, `answers`, `ocr_tokens`, `ocr_info`, `title`, `authorName`, "
        "`genre`, `image_width`, `image_height`, `image_url`, `set_name`",
        how="each question with its answer",
        source="howard-hou/OCR-VQA/blob/main/README.md",
        rows=[
            {
                "image": stored(2),
                "image_id": "0471054798",
                "questions": ["Who wrote this book?", "What is the genre?"],
                "answers": ["S. Lynn", "Business"],
                "ocr_tokens": ["LYNN"],
                "ocr_info": [
                    {
                        "word": "LYNN",
                        "bounding_box": {"width": 0.1, "height": 0.1, "top_left_x": 0.2, "top_left_y": 0.3},
                    }
                ],
                "title": "The Book",
                "authorName": "S. Lynn",
                "genre": "Business",
                "image_width": 334,
                "image_height": 500,
                "image_url": "https://example.com/cover.jpg",
                "set_name": "train",
            }
        ],
        told=[
            [
                "user: <2>Who wrote this book?",
                "assistant: S. Lynn",
                "user: What is the genre?",
                "assistant: Business",
            ]
        ],
        telling=("ocr_tokens", "ocr_info", "title"),
        unread=(
            *("image_id", "ocr_tokens", "ocr_info", "title", "authorName", "genre", "image_width", "image_height"),
            *("image_url", "set_name"),
        ),
    ),
    PublicSet(
        name="NLVR2 (lmms-lab)",
        columns="`question_id`, `question`, `answer`, `left_image`, `right_image`",
        how="question over two images, answer",
        source=MEMORY,
        rows=[
            {
                "question_id": "dev-850-0-0",
                "question": "Both images show dogs. True or false?",
                "answer": "False",
                "left_image": stored(0),
                "right_image": stored(1),
            }
        ],
        told=[["user: <0><1>Both images show dogs. True or false?", "assistant: False"]],
        unread=("question_id",),
    ),
    PublicSet(
        name="Open-R1 multimodal",
        columns="`image`, `problem`, `solution`, `original_question`, `original_answer`",
        how="question, answer with its `<think>` part",
        source="luodian/mini_cot/blob/main/README.md",
        rows=[
            {
                "image": stored(3),
                "problem": "Find x.",
                "solution": "<think>\n2 + 1\n</think>\n\n<answer>3</answer>",
                "original_question": "Find x.\nA. 2\nB. 3",
                "original_answer": "B",
            }
        ],
        told=[["user: <3>Find x.", "assistant: <think>\n2 + 1\n</think>\n\n<answer>3</answer>"]],
        telling=("original_question", "original_answer"),
        unread=("original_question", "original_answer"),
    ),
    PublicSet(
        name="M3IT",
        columns="`instruction`, `inputs`, `image_base64_str` (a list), `outputs`",
        how="instruction and input, answer",
        source=SEEN,
        file="train.jsonl",
        rows=[
            {
                "instruction": "Answer the question.",
                "inputs": "What is shown?",
                "image_base64_str": [base64.b64encode(picture(0)).decode()],
                "outputs": "A chart.",
            }
        ],
        told=[["user: <0>Answer the question.\nWhat is shown?", "assistant: A chart."]],
    ),
    PublicSet(
        name="HatefulMemes",
        columns="`id`, `img`, `label` (0 or 1), `text`",
        how="the text in the image as the question, the number",
        source=MEMORY,
        file="train.jsonl",
        rows=[{"id": 42953, "img": "img/42953.png", "label": 1, "text": "its their character"}],
        images={"img/42953.png": 2},
        flag="--prompt_column text",
        told=[["user: <2>its their character", "assistant: 1"]],
        unread=("id",),
    ),
)
