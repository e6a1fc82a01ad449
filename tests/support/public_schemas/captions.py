"""Public captions, and other texts of what an image shows."""

from __future__ import annotations

from support.public_schemas.form import MEMORY, SEEN, PublicSet, stored

CAPTIONS: tuple[PublicSet, ...] = (
    PublicSet(
        name="Flickr30k",
        columns="`image`, `caption` (a list), `sentids`, `split`, `img_id`, `filename`",
        how="first caption",
        source="umaru97/flickr30k_train_val_test/blob/main/README.md",
        rows=[
            {
                "image": stored(0),
                "caption": ["Two men stand in a yard.", "Two friends talk."],
                "sentids": ["0", "1"],
                "split": "train",
                "img_id": "0",
                "filename": "1000092795.jpg",
            }
        ],
        told=[["user: <0>Describe the picture.", "assistant: Two men stand in a yard."]],
        unread=("sentids", "split", "img_id", "filename"),
    ),
    PublicSet(
        name="NoCaps",
        columns="`image`, `image_coco_url`, `image_date_captured`, `image_file_name`, `image_height`, `image_width`, "
        "`image_id`, `image_license`, `image_open_images_id`, `annotations_ids`, `annotations_captions`",
        how="first caption",
        source="lmms-lab/NoCaps/blob/be84f0fe133980d08ab38f43b41f2c49dd16b366/README.md",
        rows=[
            {
                "image": stored(1),
                "image_coco_url": "https://example.com/0013ea2087020901.jpg",
                "image_date_captured": "2018-11-06 11:04:33",
                "image_file_name": "0013ea2087020901.jpg",
                "image_height": 1024,
                "image_width": 732,
                "image_id": 0,
                "image_license": 0,
                "image_open_images_id": "0013ea2087020901",
                "annotations_ids": [0, 1],
                "annotations_captions": ["A baby in a bath.", "A child washes."],
            }
        ],
        told=[["user: <1>Describe the picture.", "assistant: A baby in a bath."]],
        unread=(
            *("image_coco_url", "image_date_captured", "image_file_name", "image_height", "image_width", "image_id"),
            *("image_license", "image_open_images_id", "annotations_ids"),
        ),
    ),
    PublicSet(
        name="ROCO",
        columns="`image`, `image_id`, `caption`, `cui`",
        how="caption",
        source=MEMORY,
        rows=[{"image": stored(2), "image_id": "ROCOv2_2023_train_1", "caption": "A chest scan.", "cui": ["C0040405"]}],
        told=[["user: <2>Describe the picture.", "assistant: A chest scan."]],
        telling=("cui",),
        unread=("image_id", "cui"),
    ),
    PublicSet(
        name="WebSight",
        columns="`image`, `text`, `llm_generated_idea`",
        how="the question that is typed, the page's HTML",
        source=SEEN,
        rows=[{"image": stored(0), "text": "<html><body>Shop</body></html>", "llm_generated_idea": "A shop."}],
        telling=("llm_generated_idea",),
        unread=("llm_generated_idea",),
        flag='--default_prompt "Write this page as HTML."',
        told=[["user: <0>Write this page as HTML.", "assistant: <html><body>Shop</body></html>"]],
    ),
    PublicSet(
        name="PubTabNet (html)",
        columns="`image`, `split`, `imgid`, `html`, `html_table`",
        how="the question that is typed, the table's HTML",
        source="apoidea/pubtabnet-html/blob/25c1352f9a5b0f1e926d8736a56750df283eddd2/README.md",
        rows=[
            {
                "image": stored(1),
                "split": "train",
                "imgid": 548625,
                "html": "<html><body><table><tr><td>1</td></tr></table></body></html>",
                "html_table": "<table><tr><td>1</td></tr></table>",
            }
        ],
        flag='--default_prompt "Write the table as HTML."',
        told=[["user: <1>Write the table as HTML.", "assistant: <table><tr><td>1</td></tr></table>"]],
        telling=("html",),
        unread=("split", "imgid", "html"),
    ),
)
