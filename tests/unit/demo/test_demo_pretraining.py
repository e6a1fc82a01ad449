"""Pre-training feeds the model exactly what the published processor would feed it."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_lora.demo.architecture import build_model, build_processor, save_base
from vlm_lora.demo.arrangements import random_scene
from vlm_lora.demo.muon import Muon, orthogonalise
from vlm_lora.demo.packing import Packer, to_pixel_values
from vlm_lora.demo.pretrain import CharacterHead, answer_logits, image_features, rate_factor
from vlm_lora.demo.scenes import Scene, draw_scene
from vlm_lora.demo.tokenizer import SPECIAL_TOKENS, train_tokenizer
from vlm_lora.demo.words import load_vocabulary


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer(load_vocabulary().training)


@pytest.fixture(scope="module")
def processor(tokenizer):  # type: ignore[no-untyped-def]
    return build_processor(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return build_model(tokenizer).eval()


@pytest.fixture(scope="module")
def scene() -> Scene:
    return random_scene(random.Random(4), load_vocabulary().training, layout="rows")


def conversation(scene: Scene, index: int, *, answered: bool) -> list[dict[str, object]]:
    exchange = scene.exchanges[index]
    user: dict[str, object] = {
        "role": "user",
        "content": [
            {"type": "image", "image": draw_scene(scene)},
            {"type": "text", "text": exchange.question},
        ],
    }
    model_turn: dict[str, object] = {
        "role": "assistant",
        "content": [{"type": "text", "text": exchange.answer}],
    }
    return [user, model_turn] if answered else [user]


def processed(processor, messages, *, prompt: bool):  # type: ignore[no-untyped-def]
    return processor.apply_chat_template(
        [messages],
        add_generation_prompt=prompt,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def test_packed_tokens_and_pixels_equal_the_processor(processor, tokenizer, scene) -> None:  # type: ignore[no-untyped-def]
    packer = Packer(tokenizer)
    for index, exchange in enumerate(scene.exchanges[:4]):
        question, answer = packer.turns(exchange)
        prompt = processed(processor, conversation(scene, index, answered=False), prompt=True)
        assert prompt["input_ids"][0].tolist() == [*packer.prefix, *question]
        whole = processed(processor, conversation(scene, index, answered=True), prompt=False)
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        assert whole["input_ids"][0].tolist() == [*packer.prefix, *question, *answer, *newline]
        ours = to_pixel_values([draw_scene(scene)])
        torch.testing.assert_close(ours, prompt["pixel_values"], rtol=0, atol=1e-6)


def test_packed_questions_get_the_logits_they_would_get_alone(  # type: ignore[no-untyped-def]
    processor, model, tokenizer, scene
) -> None:
    packer = Packer(tokenizer)
    batch = packer.pack([scene], length=160)
    with torch.no_grad():
        features = image_features(model, batch)
        packed = answer_logits(model, batch, features, image_start=packer.image_start)
        done = 0
        for index, exchange in enumerate(scene.exchanges):
            question, answer = packer.turns(exchange)
            if done == len(packed):
                break
            inputs = processed(processor, conversation(scene, index, answered=True), prompt=False)
            alone = model(**inputs).logits[0]
            start = len(packer.prefix) + len(question) - 1
            torch.testing.assert_close(
                packed[done : done + len(answer)],
                alone[start : start + len(answer)],
                rtol=1e-3,
                atol=1e-4,
            )
            done += len(answer)
    assert index >= 3
    # Negative control: the same comparison fails with another image.
    blank = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
    with torch.no_grad():
        other = model(**blank).logits[0]
    assert (other - alone).abs().max() > 1e-3


def test_labels_are_the_answers_only(tokenizer, scene) -> None:  # type: ignore[no-untyped-def]
    batch = Packer(tokenizer).pack([scene], length=160)
    text = tokenizer.decode(batch.labels[batch.labels >= 0])
    asked = text.count("<end_of_turn>")
    expected = "".join(f"{e.answer}<end_of_turn>" for e in scene.exchanges[:asked])
    assert asked >= 3
    assert text == expected


def test_no_question_sees_another(tokenizer, scene) -> None:  # type: ignore[no-untyped-def]
    packer = Packer(tokenizer)
    batch = packer.pack([scene], length=160)
    question, answer = packer.turns(scene.exchanges[0])
    start, first = len(packer.prefix), len(question) + len(answer)
    assert batch.mask[0, 0, start + first :, :start].any()
    assert not batch.mask[0, 0, start + first :, start : start + first].any()
    assert not batch.mask[0, 0, :start, start:].any()


def test_digits_are_tokens_and_names_do_not_depend_on_a_space(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.tokenize("1,234.5") == list("1,234.5")
    alone = tokenizer.tokenize("Chile")
    assert tokenizer.tokenize("of Chile?")[-len(alone) - 1 : -1] == alone
    for token in SPECIAL_TOKENS:
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.decode(tokenizer("Größe 3", add_special_tokens=False)["input_ids"]) == "Größe 3"


def test_template_writes_strings_parts_and_system(processor) -> None:  # type: ignore[no-untyped-def]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Read. "}]},
        {"role": "assistant", "content": "7"},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<bos><start_of_turn>user\nBe brief.\n\n<start_of_image>Read.<end_of_turn>\n"
        "<start_of_turn>model\n7<end_of_turn>\n<start_of_turn>model\n"
    )


def test_saved_folder_loads_with_the_auto_classes(  # type: ignore[no-untyped-def]
    tmp_path: Path, model, processor, scene
) -> None:
    save_base(model, processor, tmp_path)
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, torch_dtype=torch.float32)
    messages = conversation(scene, 0, answered=False)
    before = processed(processor, messages, prompt=True)
    after = processed(loaded_processor, messages, prompt=True)
    assert before["input_ids"].tolist() == after["input_ids"].tolist()
    torch.testing.assert_close(before["pixel_values"], after["pixel_values"])
    assert model.dtype == torch.float32
    end = loaded_processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end in loaded.generation_config.eos_token_id
    assert loaded_processor.image_processor.do_pan_and_scan is False
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-2, atol=1e-3)


def test_muon_moves_by_an_orthogonal_matrix_and_lowers_a_loss() -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(3, 12, 20)))
    assert singular.min() > 0.5
    assert singular.max() < 1.5
    weight = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = Muon([weight], lr=0.1)
    first = weight.square().sum().item()
    for _ in range(10):
        loss = weight.square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert weight.square().sum().item() < 0.5 * first


def test_character_head_learns_its_targets() -> None:
    torch.manual_seed(0)
    head = CharacterHead(16)
    features, targets = torch.randn(2, 36, 16), torch.randint(0, 5, (2, 36, 8))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = head(features, targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_learning_rate_rises_and_falls() -> None:
    assert rate_factor(0.0) < rate_factor(0.005) < rate_factor(0.3) == 1.0
    assert rate_factor(0.3) > rate_factor(0.8) > rate_factor(1.0) > 0
