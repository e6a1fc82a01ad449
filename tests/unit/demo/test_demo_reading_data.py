"""Words, scenes and their questions: right answers, held-out words, characters where drawn."""

import random

import numpy as np
import pytest

from vlm_lora.demo.arrangements import random_scene
from vlm_lora.demo.packing import CHARACTERS, cell_characters
from vlm_lora.demo.reading import ReadingScore, held_out_scenes
from vlm_lora.demo.scene_questions import questions
from vlm_lora.demo.scenes import Item, Scene, draw_scene
from vlm_lora.demo.words import is_held_out, load_vocabulary, random_number

LAYOUTS = ("single", "scatter", "list", "rows", "columns", "page")


def test_held_out_words_are_never_trained_on() -> None:
    vocabulary = load_vocabulary()
    training = {word.lower() for word in vocabulary.training}
    assert len(vocabulary.training) > 1000
    assert len(vocabulary.held_out) > 100
    assert not training & {word.lower() for word in vocabulary.held_out}


def test_held_out_scenes_show_only_held_out_words() -> None:
    words = [item.text for scene in held_out_scenes(samples=80, seed=0) for item in scene.items if not item.is_number]
    assert len(words) > 20
    assert all(is_held_out(word) for word in words)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_texts_lie_inside_the_image_and_answers_are_in_it(layout: str) -> None:
    rng = random.Random(layout)
    words = load_vocabulary().training
    for _ in range(60):
        scene = random_scene(rng, words, layout=layout)
        texts = [item.text for item in scene.items]
        for item in scene.items:
            left, top, right, bottom = item.box
            assert left >= 0
            assert top >= 0
            assert right <= 97
            assert bottom <= 98
        for exchange in scene.exchanges:
            assert set(exchange.answer.split()) <= set(texts)


def test_each_question_has_one_answer() -> None:
    rng = random.Random(0)
    words = load_vocabulary().training
    for _ in range(200):
        scene = random_scene(rng, words)
        asked = [exchange.question for exchange in scene.exchanges]
        assert len(asked) == len(set(asked))


def test_the_number_that_belongs_to_a_name_is_asked_for() -> None:
    items = (
        Item(text="Chile", x=5, y=10, font_size=10, group=0),
        Item(text="42", x=60, y=10, font_size=10, group=0),
        Item(text="Peru", x=5, y=40, font_size=10, group=1),
        Item(text="1,300", x=60, y=40, font_size=10, group=1),
    )
    asked = {exchange.question: exchange.answer for exchange in questions(items, "rows")}
    assert asked["Which number is next to Chile?"] == "42"
    assert asked["Which word is next to 1,300?"] == "Peru"
    assert asked["What is the largest number?"] == "1,300"
    assert asked["Which word is at the top?"] == "Chile"
    assert not any("bar" in question for question in asked)


def test_a_character_is_noted_where_its_ink_is() -> None:
    item = Item(text="7", x=50, y=34, font_size=12)
    scene = Scene(items=(item,), exchanges=(), style_seed=3)
    grid = cell_characters(scene)
    assert grid.shape == (36, 8)
    ((cell, _),) = np.argwhere(grid)
    assert grid.max() == 1 + CHARACTERS.index("7")
    picture = np.asarray(draw_scene(scene)).astype(int)
    blank = np.asarray(draw_scene(Scene(items=(), exchanges=(), style_seed=3))).astype(int)
    rows, columns = np.nonzero(np.abs(picture - blank).sum(axis=2) > 60)
    assert (int(rows.mean()) // 16) * 6 + int(columns.mean()) // 16 == cell


def test_numbers_have_several_formats() -> None:
    rng = random.Random(0)
    numbers = [random_number(rng) for _ in range(300)]
    assert any("," in number for number in numbers)
    assert any("." in number for number in numbers)
    assert all(float(number.replace(",", "")) >= 0 for number in numbers)


def test_accuracy_is_a_share() -> None:
    assert ReadingScore(correct=3, total=4).accuracy == 0.75
    assert ReadingScore(correct=0, total=0).accuracy == 0.0
