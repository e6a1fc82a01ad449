"""Public data in its authors' own files: documents of several lists that belong together, and pickles."""

from __future__ import annotations

from support.public_schemas.form import MEMORY, SEEN, PublicSet

_INFO = {"year": 2017, "version": "1.0", "description": "made up", "contributor": "", "url": "", "date_created": ""}
_IMAGES = [
    {
        "license": 3,
        "file_name": "000000391895.jpg",
        "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg",
        "height": 64,
        "width": 96,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": "http://example.com/1.jpg",
        "id": 391895,
    }
]
_LICENSES = [{"url": "http://example.com", "id": 3, "name": "a licence"}]

ORIGINALS: tuple[PublicSet, ...] = (
    PublicSet(
        name="VQAv2 (original questions)",
        columns="`info`, `questions` (`image_id`, `question`, `question_id`), ...; answers in another file",
        how="the Parquet form",
        source=MEMORY,
        file="v2_OpenEnded_mscoco_train2014_questions.json",
        document={
            "info": _INFO,
            "task_type": "Open-Ended",
            "data_type": "mscoco",
            "license": {"url": "", "name": ""},
            "data_subtype": "train2014",
            "questions": [{"image_id": 458752, "question": "What is this?", "question_id": 458752000}],
        },
        refused="questions of VQA, whose answers are in another file",
    ),
    PublicSet(
        name="VQAv2 (original annotations)",
        columns="`info`, `annotations` (`question_type`, `multiple_choice_answer`, `answers`, `image_id`, "
        "`answer_type`, `question_id`), ...; questions in another file",
        how="the Parquet form",
        source=MEMORY,
        file="v2_mscoco_train2014_annotations.json",
        document={
            "info": _INFO,
            "license": {"url": "", "name": ""},
            "data_subtype": "train2014",
            "data_type": "mscoco",
            "annotations": [
                {
                    "question_type": "what is this",
                    "multiple_choice_answer": "net",
                    "answers": [{"answer": "net", "answer_confidence": "yes", "answer_id": 1}],
                    "image_id": 458752,
                    "answer_type": "other",
                    "question_id": 458752000,
                }
            ],
        },
        refused="answers of VQA, whose questions are in another file",
    ),
    PublicSet(
        name="COCO captions (original)",
        columns="`info`, `licenses`, `images`, `annotations` (`image_id`, `id`, `caption`)",
        how='a row an image: `{"image": ..., "caption": [...]}`',
        source=MEMORY,
        file="captions_train2017.json",
        document={
            "info": _INFO,
            "licenses": _LICENSES,
            "images": _IMAGES,
            "annotations": [{"image_id": 391895, "id": 770337, "caption": "A man on a bike."}],
        },
        refused="captions in COCO's form",
    ),
    PublicSet(
        name="COCO instances (original)",
        columns="`info`, `licenses`, `images`, `annotations` (`bbox`, `category_id`, `image_id`, ...), `categories`",
        how='a row an image: `{"image": ..., "objects": {"bbox": [...], "category": [...]}}`',
        source=MEMORY,
        file="instances_train2017.json",
        document={
            "info": _INFO,
            "licenses": _LICENSES,
            "images": _IMAGES,
            "annotations": [
                {
                    "segmentation": [[2.0, 3.0, 12.0, 3.0, 12.0, 8.0]],
                    "area": 50.0,
                    "iscrowd": 0,
                    "image_id": 391895,
                    "bbox": [2.0, 3.0, 10.0, 5.0],
                    "category_id": 4,
                    "id": 151091,
                }
            ],
            "categories": [{"supercategory": "vehicle", "id": 4, "name": "motorcycle"}],
        },
        refused="boxes in COCO's form",
    ),
    PublicSet(
        name="COCO captions (Karpathy)",
        columns="`dataset`, `images` (`filepath`, `filename`, `sentences`, `split`, ...)",
        how='a row an image: `{"image": ..., "caption": [...]}`',
        source=MEMORY,
        file="dataset_coco.json",
        document={
            "images": [
                {
                    "filepath": "val2014",
                    "sentids": [770337],
                    "filename": "COCO_val2014_000000391895.jpg",
                    "imgid": 0,
                    "split": "test",
                    "sentences": [{"tokens": ["a", "man"], "raw": "A man on a bike.", "imgid": 0, "sentid": 770337}],
                    "cocoid": 391895,
                }
            ],
            "dataset": "coco",
        },
        refused="captions in Karpathy's form",
    ),
    PublicSet(
        name="RefCOCO (original pickle)",
        columns="a pickled list of `sent_ids`, `file_name`, `ann_id`, `ref_id`, `image_id`, `sentences`, ...",
        how="a form without pickles: reading one can run code",
        source="https://github.com/lichengunc/refer/blob/master/README.md",
        file="refs(unc).p",
        document=b"\x80\x03]q\x00.",
        refused="pickle",
    ),
    PublicSet(
        name="CLEVR",
        columns="`info`, `questions` (`image_index`, `program`, `question_index`, `image_filename`, "
        "`question_family_index`, `split`, `answer`, `question`); images in `images/train/`",
        how="question, answer",
        source=SEEN,
        file="CLEVR_train_questions.json",
        document={
            "info": {"split": "train", "license": "CC BY 4.0", "version": "1.0", "date": "2/14/2017"},
            "questions": [
                {
                    "image_index": 0,
                    "program": [{"inputs": [], "function": "scene", "value_inputs": []}],
                    "question_index": 0,
                    "image_filename": "CLEVR_train_000000.png",
                    "question_family_index": 2,
                    "split": "train",
                    "answer": "yes",
                    "question": "Are there more big cubes?",
                }
            ],
        },
        images={"images/train/CLEVR_train_000000.png": 0},
        flag="--image_root {folder}/images/train",
        told=[["user: <0>Are there more big cubes?", "assistant: yes"]],
        unread=("image_index", "program", "question_index", "question_family_index", "split"),
    ),
    PublicSet(
        name="Visual Genome (original question_answers)",
        columns="`id`, `qas` (`question`, `answer`, `image_id`, `qa_id`, `a_objects`, `q_objects`)",
        how='a row a question: `{"image": ..., "question": ..., "answer": ...}`',
        source=MEMORY,
        file="question_answers.json",
        rows=[
            {
                "id": 1,
                "qas": [
                    {
                        "a_objects": [],
                        "question": "What colour is the clock?",
                        "image_id": 1,
                        "qa_id": 986768,
                        "answer": "Green.",
                        "q_objects": [],
                    }
                ],
            }
        ],
        refused="'qas' holds several questions or texts for each row",
    ),
    PublicSet(
        name="NLVR2 (original)",
        columns="`sentence`, `left_url`, `right_url`, `label`, `identifier`, `writer`, `validation`, `synset`, `query`",
        how="the form with `left_image`, `right_image`, `question` and `answer`",
        source="https://github.com/lil-lab/nlvr/blob/master/nlvr2/README.md",
        file="train.jsonl",
        rows=[
            {
                "sentence": "Both images show dogs.",
                "left_url": "https://example.com/l.png",
                "right_url": "https://example.com/r.png",
                "label": "True",
                "identifier": "train-10171-0-0",
                "writer": 103,
                "validation": {"0": "True"},
                "synset": "acorn",
                "query": "acorns6",
            }
        ],
        refused="'sentence' is judged over the images 'left_url' and 'right_url'",
    ),
)
