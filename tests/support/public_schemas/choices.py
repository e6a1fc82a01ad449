"""Public questions with choices: as a list, as text, in columns, with letters, numbers or texts as answers."""

from __future__ import annotations

from support.public_schemas.form import PublicSet, stored

EVALUATION = "https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/tasks/"

CHOICES: tuple[PublicSet, ...] = (
    PublicSet(
        name="A-OKVQA",
        columns="`image`, `question_id`, `question`, `choices`, `correct_choice_idx`, `direct_answers`, "
        "`difficult_direct_answer`, `rationales`",
        how="question with its choices, the right one",
        source="https://github.com/allenai/aokvqa/blob/main/README.md",
        rows=[
            {
                "image": stored(0),
                "question_id": "22MexNkBPpdZGX6sxbxVBH",
                "question": "What is the man by the bags awaiting?",
                "choices": ["skateboarder", "train", "delivery", "cab"],
                "correct_choice_idx": 3,
                "direct_answers": "['ride', 'ride', 'bus', 'taxi']",
                "difficult_direct_answer": False,
                "rationales": ["A train would not be on the street.", "He has bags."],
            },
            {
                "image": stored(1),
                "question_id": "2Aq5RiEn7cyfWWDJ5bBBHr",
                "question": "What is in his mouth?",
                "choices": ["toothpick", "food", "popsicle stick", "cigarette"],
                "correct_choice_idx": 0,
                "direct_answers": "['toothpick', 'stick']",
                "difficult_direct_answer": False,
                "rationales": ["It is thin."],
            },
        ],
        told=[
            [
                "user: <0>What is the man by the bags awaiting?\nA. skateboarder\nB. train\nC. delivery\nD. cab",
                "assistant: D",
            ],
            ["user: <1>What is in his mouth?\nA. toothpick\nB. food\nC. popsicle stick\nD. cigarette", "assistant: A"],
        ],
        telling=("direct_answers", "rationales"),
        unread=("question_id", "direct_answers", "difficult_direct_answer", "rationales"),
    ),
    PublicSet(
        name="ScienceQA",
        columns="`image`, `question`, `choices`, `answer` (a number from 0), `hint`, `task`, `grade`, `subject`, "
        "`topic`, `category`, `skill`, `lecture`, `solution`",
        how="question with its hint and choices, the right one's letter",
        source="lmms-lab/ScienceQA/blob/7d5be0f9a868f835ee26f74cba3baa743c1be07d/README.md",
        rows=[
            {
                "image": stored(0),
                "question": "Which bar is the tallest?",
                "choices": ["red", "blue", "green"],
                "answer": 1,
                "hint": "The chart shows four bars.",
                "task": "closed choice",
                "grade": "grade2",
                "subject": "natural science",
                "topic": "units",
                "category": "Data",
                "skill": "Read charts",
                "lecture": "A chart shows numbers.",
                "solution": "The blue bar reaches furthest.",
            },
            {
                "image": None,
                "question": "Which is heavier?",
                "choices": ["a cup", "a bus"],
                "answer": 0,
                "hint": "",
                "task": "closed choice",
                "grade": "grade2",
                "subject": "natural science",
                "topic": "units",
                "category": "Mass",
                "skill": "Compare",
                "lecture": "",
                "solution": "A cup of lead.",
            },
        ],
        told=[
            [
                "user: <0>Which bar is the tallest?\nThe chart shows four bars.\nA. red\nB. blue\nC. green",
                "assistant: B",
            ],
            ["user: Which is heavier?\nA. a cup\nB. a bus", "assistant: A"],
        ],
        telling=("lecture", "solution"),
        unread=("task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"),
    ),
    PublicSet(
        name="AI2D",
        columns="`question`, `options`, `answer` (a number from 0, as text), `image`",
        how="question with its choices, the right one's letter",
        source=f"{EVALUATION}ai2d/utils.py",
        rows=[
            {"question": "Which eats grass?", "options": ["owl", "hare"], "answer": "1", "image": stored(1)},
            {"question": "Which flies?", "options": ["owl", "hare"], "answer": "0", "image": stored(2)},
        ],
        told=[
            ["user: <1>Which eats grass?\nA. owl\nB. hare", "assistant: B"],
            ["user: <2>Which flies?\nA. owl\nB. hare", "assistant: A"],
        ],
    ),
    PublicSet(
        name="MMMU",
        columns="`id`, `question`, `options` (a list written as text), `explanation`, `image_1` to `image_7`, "
        "`img_type`, `answer`, `topic_difficulty`, `question_type`, `subfield`",
        how="question with its images in place and its choices, letter",
        source="HuggingFaceM4/MMMU/blob/main/README.md",
        rows=[
            {
                "id": "validation_Accounting_1",
                "question": "Compare <image 1> with <image 2>. Which is larger?",
                "options": "['the first', 'the second', \"it's equal\"]",
                "explanation": "",
                "image_1": stored(0),
                "image_2": stored(1),
                **{f"image_{number}": None for number in range(3, 8)},
                "img_type": "['Tables']",
                "answer": "B",
                "topic_difficulty": "Medium",
                "question_type": "multiple-choice",
                "subfield": "Managerial Accounting",
            },
            {
                "id": "validation_Accounting_2",
                "question": "<image 1> What is the net cost?",
                "options": "[]",
                "explanation": "Add the rows.",
                "image_1": stored(2),
                **{f"image_{number}": None for number in range(2, 8)},
                "img_type": "['Tables']",
                "answer": "42",
                "topic_difficulty": "Easy",
                "question_type": "open",
                "subfield": "Managerial Accounting",
            },
        ],
        told=[
            [
                "user: Compare <0> with <1>. Which is larger?\nA. the first\nB. the second\nC. it's equal",
                "assistant: B",
            ],
            ["user: <2> What is the net cost?", "assistant: 42"],
        ],
        telling=("explanation",),
        unread=("id", "explanation", "img_type", "topic_difficulty", "question_type", "subfield"),
    ),
    PublicSet(
        name="MMBench",
        columns="`index`, `question`, `hint`, `answer`, `A`, `B`, `C`, `D`, `category`, `image`, `source`, "
        "`L2-category`, `comment`, `split`",
        how="question with its hint and choices, letter",
        source="lmms-lab/MMBench/blob/ac155b9c318a37ac5a75267b18cbca12cbcc6bab/README.md",
        rows=[
            {
                "index": "241",
                "question": "What is it?",
                "hint": "The picture was taken at night.",
                "answer": "A",
                "A": "a lamp",
                "B": "a moon",
                "C": "nan",
                "D": None,
                "category": "identity_reasoning",
                "image": stored(0),
                "source": "scienceqa",
                "L2-category": "attribute_reasoning",
                "comment": "nan",
                "split": "dev",
            },
            {
                "index": "242",
                "question": "Which way is it?",
                "hint": "nan",
                "answer": "B",
                "A": "left",
                "B": "right",
                "C": "up",
                "D": "down",
                "category": "spatial",
                "image": stored(1),
                "source": "custom",
                "L2-category": "relation_reasoning",
                "comment": "nan",
                "split": "dev",
            },
        ],
        told=[
            ["user: <0>What is it?\nThe picture was taken at night.\nA. a lamp\nB. a moon", "assistant: A"],
            ["user: <1>Which way is it?\nA. left\nB. right\nC. up\nD. down", "assistant: B"],
        ],
        unread=("index", "category", "source", "L2-category", "comment", "split"),
    ),
    PublicSet(
        name="MMStar",
        columns="`index`, `question` (with its choices), `image`, `answer`, `category`, `l2_category`, `meta_info`",
        how="question as it is, letter",
        source=f"{EVALUATION}mmstar/utils.py",
        rows=[
            {
                "index": 0,
                "question": "Which is the subject?\nOptions: A: A cup, B: A fork",
                "image": stored(0),
                "answer": "A",
                "category": "coarse perception",
                "l2_category": "image scene and topic",
                "meta_info": {"source": "MMBench", "split": "val", "image_path": "images/0.jpg"},
            }
        ],
        told=[["user: <0>Which is the subject?\nOptions: A: A cup, B: A fork", "assistant: A"]],
        unread=("index", "category", "l2_category", "meta_info"),
    ),
    PublicSet(
        name="BLINK",
        columns="`idx`, `question`, `sub_task`, `image_1` to `image_4`, `choices`, `answer`, `prompt`, `explanation`",
        how="prompt with its choices over the images, `(A)`",
        source=f"{EVALUATION}blink/utils.py",
        rows=[
            {
                "idx": "val_Visual_Similarity_1",
                "question": "Which image is most similar to the first?",
                "sub_task": "Visual_Similarity",
                "image_1": stored(0),
                "image_2": stored(1),
                "image_3": stored(2),
                "image_4": None,
                "choices": ["the second image", "the third image"],
                "answer": "(B)",
                "prompt": "Which image is most similar to the first?\nSelect from the following choices.\n"
                "(A) the second image\n(B) the third image",
                "explanation": "",
            }
        ],
        flag="--prompt_column prompt",
        told=[
            [
                "user: <0><1><2>Which image is most similar to the first?\nSelect from the following choices.\n"
                "(A) the second image\n(B) the third image",
                "assistant: (B)",
            ]
        ],
        unread=("idx", "question", "sub_task", "explanation"),
    ),
    PublicSet(
        name="MathVista",
        columns="`pid`, `question`, `image` (a name), `decoded_image`, `choices`, `unit`, `precision`, `answer`, "
        "`question_type`, `answer_type`, `metadata`, `query`",
        how="query, answer",
        source="AI4Math/MathVista/blob/d32e834bdd9442cf2a0f72e3b2b7a74151c2a2d1/README.md",
        rows=[
            {
                "pid": "1",
                "question": "Which is larger?",
                "image": "images/1.jpg",
                "decoded_image": stored(0),
                "choices": ["red", "blue"],
                "unit": None,
                "precision": None,
                "answer": "blue",
                "question_type": "multi_choice",
                "answer_type": "text",
                "metadata": {"category": "general-vqa", "grade": "daily life", "img_height": 64, "skills": ["numeric"]},
                "query": "Hint: Answer by the letter.\nQuestion: Which is larger?\nChoices:\n(A) red\n(B) blue",
            },
            {
                "pid": "2",
                "question": "How far is it?",
                "image": "images/2.jpg",
                "decoded_image": stored(1),
                "choices": None,
                "unit": "m",
                "precision": 1.0,
                "answer": "1.2",
                "question_type": "free_form",
                "answer_type": "float",
                "metadata": {"category": "math", "grade": "high school", "img_height": 64, "skills": ["numeric"]},
                "query": "Hint: Answer with one decimal place.\nQuestion: How far is it? (Unit: m)",
            },
        ],
        told=[
            [
                "user: <0>Hint: Answer by the letter.\nQuestion: Which is larger?\nChoices:\n(A) red\n(B) blue",
                "assistant: blue",
            ],
            ["user: <1>Hint: Answer with one decimal place.\nQuestion: How far is it? (Unit: m)", "assistant: 1.2"],
        ],
        telling=("unit", "precision"),
        unread=("pid", "question", "image", "unit", "precision", "question_type", "answer_type", "metadata"),
    ),
    PublicSet(
        name="SEED-Bench-2",
        columns="`answer`, `choice_a` to `choice_d`, `data_id`, `data_type`, `data_source`, `level`, `question`, "
        "`question_id`, `question_type_id`, `image` (a list), `subpart`, `version`",
        how="question with its choices, letter",
        source="lmms-lab/SEED-Bench-2/blob/main/README.md",
        rows=[
            {
                "answer": "B",
                "choice_a": "One",
                "choice_b": "Two",
                "choice_c": "Three",
                "choice_d": "Four",
                "data_id": ["1454426_2591111986"],
                "data_type": "Single Image",
                "data_source": "cc3m",
                "level": "L1",
                "question": "How many towels are in the image?",
                "question_id": "101669",
                "question_type_id": 5,
                "image": [stored(2)],
                "subpart": "Single-Image & Text Comprehension",
                "version": "v1",
            }
        ],
        told=[
            ["user: <2>How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four", "assistant: B"],
        ],
        unread=(
            *("data_id", "data_type", "data_source", "level", "question_id", "question_type_id", "subpart", "version"),
        ),
    ),
)
