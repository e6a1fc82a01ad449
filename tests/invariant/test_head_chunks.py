"""Head and loss in chunks equal the model's own logits and the textbook loss, for every family in the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from support.tiny import available
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.errors import ModelError
from vlm_lora.model.families import family_of
from vlm_lora.model.head import loss, trained
from vlm_lora.model.head.after import AfterHead, Change, change_of
from vlm_lora.model.objective import ScoredModel, SupervisedHead
from vlm_lora.model.parts import decoder_layers, find_parts

ANSWER = 5
"""Supervised tokens at the end of the row; the positions have two of padding behind them."""
CAPPED = ("gemma3n", "gemma4", *(("paligemma",) if int(transformers.__version__.partition(".")[0]) >= 5 else ()))
"""transformers 4.55 leaves PaliGemma's logits as they are."""
CAP = 2.0
HIDDEN = "what the head is given"


class Case:
    """A tiny model with one row, and the loss that the model's own logits give."""

    def __init__(self, folder: Path, *, trained_head: bool) -> None:
        processor, self.model = load_plainly(folder)
        # For every family: what does not cap by its code must not be capped by its configuration.
        self.model.config.get_text_config().final_logit_softcapping = CAP
        self.inputs = build_batch(processor)
        self.labels = self.inputs.pop("labels", self.inputs["input_ids"]).clone()
        self.labels[:, :-ANSWER] = -100
        ids = self.inputs["input_ids"]
        self.labels[:, -ANSWER:] = ids[:, -ANSWER:]
        length = ids.shape[1]
        self.positions = torch.tensor([[*range(length - ANSWER - 1, length - 1), -1, -1]])
        self.targets = loss.gather_targets(self.labels, self.positions)
        self.model.get_output_embeddings().register_forward_pre_hook(self._note)
        family = family_of(self.model.config)
        parts = find_parts(self.model, family)
        last = decoder_layers(self.model, parts)[-1]
        head = {id(p) for p in self.model.get_output_embeddings().parameters()}
        for name, parameter in self.model.named_parameters():
            inside = parts.part_of(name) == "language" and name.startswith(last + ".") and not parts.is_never_used(name)
            parameter.requires_grad_(inside or (trained_head and id(parameter) in head))

    def expected(self) -> tuple[float, dict[str, torch.Tensor]]:
        logits = self.model(**self.inputs).logits[:, :-1].float()
        total = nn.functional.cross_entropy(logits.flatten(0, 1), self.labels[:, 1:].flatten(), reduction="sum")
        return self._after(total)

    def found(self, head: SupervisedHead, count: int | None, targets: torch.Tensor | None = None) -> Any:
        wanted = self.targets if targets is None else targets
        with head.on(self.positions, wanted, count):
            output = self.model(**self.inputs).logits
        assert output.shape == (1, ANSWER + 2, 1), "no logits leave the head"
        losses = head.losses(output, wanted)
        assert losses[0, ANSWER:].tolist() == [0, 0]
        return self._after(losses.sum())

    def _after(self, total: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
        self.model.zero_grad()
        total.backward()
        gradients = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        return total.item(), {**gradients, HIDDEN: self.hidden.grad}

    def _note(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.hidden = args[0]
        if self.hidden.requires_grad:
            self.hidden.retain_grad()


def assert_equal(found: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys() != set()
    if HIDDEN in expected[1]:
        # Beyond the head it is the model's own backward pass, which makes more of fp32's rounding.
        assert (found[1][HIDDEN] - expected[1][HIDDEN]).norm() <= 1e-6 * expected[1][HIDDEN].norm()
    whole = torch.cat([tensor.flatten() for tensor in expected[1].values()])
    difference = torch.cat([(found[1][name] - tensor).flatten() for name, tensor in expected[1].items()])
    assert difference.norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("name", available())
def test_every_family_has_its_own_loss_and_gradients(name: str, model_folder: Callable[[str], Path]) -> None:
    for with_head in (False, True):
        case = Case(model_folder(name), trained_head=with_head)
        expected = case.expected()
        columns = case.model.get_output_embeddings().out_features
        head = SupervisedHead(case.model, chunk_elements=2 * columns)  # three chunks
        assert_equal(case.found(head, ANSWER), expected)
    fixed = SupervisedHead(case.model, reads=False, chunk_elements=2 * columns)
    assert_equal(case.found(fixed, None), expected)
    with torch.no_grad():
        sums = ScoredModel(case.model, head)(case.inputs, case.targets, case.positions, ANSWER)
    assert sums[0].tolist() == pytest.approx([expected[0], ANSWER], rel=1e-6)
    # The controls: other targets, and the head's logits as they are.
    shifted = case.found(head, ANSWER, case.targets.roll(1, dims=1).masked_fill(case.targets < 0, 0))
    assert shifted[0] != pytest.approx(expected[0], rel=1e-3)
    bare = SupervisedHead(case.model, chunk_elements=2 * columns)
    assert bare._after == Change(softcap=CAP if name in CAPPED else None)
    bare._after = Change()
    if name in CAPPED:
        with pytest.raises(ModelError, match="is what is known of its family"):
            case.found(bare, ANSWER)
        bare._proved = True
        assert case.found(bare, ANSWER)[0] != pytest.approx(expected[0], rel=1e-3)
    else:
        assert case.found(bare, ANSWER)[0] == pytest.approx(expected[0], rel=1e-6)


class Divided(nn.Module):
    """A model of one embedding and one head that divides its logits, as Granite does, and then rounds them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(8, 6), nn.Linear(6, 8, bias=False)
        text = SimpleNamespace(logits_scaling=4.0)
        self.config = SimpleNamespace(model_type="llava_next", get_text_config=lambda: text)
        self.rounds = False

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.embed(ids)) / self.config.get_text_config().logits_scaling
        return logits.bfloat16() if self.rounds else logits


IDS = torch.tensor([[1, 2, 3, 4, 5], [5, 2, 6, 0, 1]])
LABELS = torch.tensor([[-100, -100, 3, 4, -100], [-100, 2, -100, 5, 1]])
POSITIONS = torch.tensor([[1, 2, -1], [0, 2, 3]])


def step(model: Any, elements: int, *, reads: bool = True, after: Change | None = None) -> tuple[float, Any]:
    head = SupervisedHead(model, reads=reads, chunk_elements=elements)
    if after is not None:
        head._after, head._proved = after, True
    targets = loss.gather_targets(LABELS, POSITIONS)
    with head.on(POSITIONS, targets):
        output = model(IDS)
    total = head.losses(output, targets).sum() / 7
    model.zero_grad()
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("rounds", [True, False])
def test_a_divided_head_is_exact_whatever_follows_it(*, frozen: bool, rounds: bool) -> None:
    """Also where an engine or the model's code rounds what leaves the model: the losses go past that."""
    model = Divided()
    model.head.weight.requires_grad_(not frozen)
    logits = model(IDS)[:, :-1]
    full = nn.functional.cross_entropy(logits.flatten(0, 1), LABELS[:, 1:].flatten(), reduction="sum") / 7
    full.backward()
    expected = full.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.rounds = rounds
    for elements in (1, 16, 1000):
        for reads in (True, False):
            assert_equal(step(model, elements, reads=reads), expected)
    assert step(model, 16, after=Change())[0] != pytest.approx(expected[0], rel=1e-3)


def test_losses_are_not_taken_from_what_is_no_logits() -> None:
    model = Divided()
    head = SupervisedHead(model)
    with head.on(POSITIONS, loss.gather_targets(LABELS, POSITIONS)):
        output = model(IDS)
    with pytest.raises(ModelError, match="holds no logits"):
        output.sum().backward()


def test_a_batch_without_supervised_tokens_has_no_loss_and_gives_zeros() -> None:
    model = Divided()
    head = SupervisedHead(model)
    targets = torch.full((2, 1), -100)
    with head.on(torch.full((2, 1), -1), targets, 0):
        output = model(IDS)
    total = head.losses(output, targets).sum()
    total.backward()
    assert total.item() == 0
    for weight in (model.head.weight, model.embed.weight):
        assert weight.grad is not None
        assert not weight.grad.any()


def test_a_batch_with_more_supervised_tokens_than_it_says_is_an_error() -> None:
    model = Divided()
    head = SupervisedHead(model)
    too_few = head.on(POSITIONS, loss.gather_targets(LABELS, POSITIONS), 4)
    with pytest.raises(ModelError, match="5 tokens of a batch are supervised, and it says 4"), too_few:
        model(IDS)


class Plain(Divided):
    """Its configuration has the key, and its code does not read it."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


def test_a_key_that_the_installed_code_does_not_read_changes_nothing() -> None:
    facts = AfterHead(divisor="logits_scaling")
    assert change_of(Plain(), facts) == Change()
    assert change_of(Divided(), facts) == Change(divisor=4.0)


def test_one_call_of_the_head_makes_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an engine gathers a sharded head once: its hooks are on the call."""
    model = Divided()
    calls: list[int] = []
    rows: list[int] = []
    model.head.register_forward_pre_hook(lambda *_: calls.append(1))

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def function(logits: torch.Tensor, targets: torch.Tensor) -> Any:
            rows.append(len(targets))
            return original(logits, targets)

        return function

    for name in ("token_losses", "losses_and_slopes"):
        monkeypatch.setattr(trained, name, counted(getattr(loss, name)))
    step(model, 16)
    assert calls == [1]
    assert rows == [2, 2, 1, 2, 2], "all but the last, with which the backward pass begins, are made twice"


class WeightGradients(TorchDispatchMode):
    """Keeps every product as large as a head's weight, so that no memory is used twice."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self._size = sorted(weight.shape)
        self.made: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in {torch.ops.aten.mm, torch.ops.aten.addmm_} and sorted(result.shape) == self._size:
            self.made.append(result)
        return result


class Unread(nn.Linear):
    """A linear head that has a forward of its own, so its weight is not read."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight)


def test_a_trained_heads_gradient_adds_up_in_one_buffer() -> None:
    """A head of 262,144 x 640 would have 640 MiB more for a second one."""
    model, other = Divided(), Divided()
    other.head = Unread(6, 8, bias=False)
    other.head.load_state_dict(model.head.state_dict())
    found, buffers = [], []
    for each in (model, other):
        with WeightGradients(each.head.weight) as products:
            found.append(step(each, 16))
        assert len(products.made) == 3, "one for each chunk"
        buffers.append(len({product.data_ptr() for product in products.made}))
    assert_equal(found[0], found[1])
    assert buffers == [1, 3], "autograd, the control, makes each chunk's by itself"


@pytest.mark.parametrize("precision", ["bias", "autocast", "bfloat16"])
def test_a_trained_head_is_exact_with_a_bias_and_in_other_dtypes(precision: str) -> None:
    """As close to fp32 as autograd's own way to it, and the gradients have the weights' dtype."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = Divided()
    model.head = nn.Linear(6, 8)
    exact = step(model, 1000)
    model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        whole, cut = step(model, 1000), step(model, 16)
    assert {name: gradient.dtype for name, gradient in cut[1].items()} == dict.fromkeys(exact[1], dtype)

    def off(found: tuple[float, dict[str, torch.Tensor]]) -> float:
        ends = [torch.cat([gradient.float().flatten() for gradient in each.values()]) for each in (found[1], exact[1])]
        return float((ends[0] - ends[1]).norm() / ends[1].norm())

    assert cut[0] == pytest.approx(exact[0], rel=1e-6 if precision == "bias" else 5e-3)
    assert off(cut) <= (1e-6 if precision == "bias" else 1.5 * off(whole) + 1e-3)
    shifted = step(model, 16, after=Change())
    assert off(shifted) > 0.1, "the control: a loss of undivided logits"


def test_a_second_backward_pass_through_a_trained_head_gives_the_same() -> None:
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = trained.TrainedLinear.apply(torch.ones(5, 6), weight, None, torch.arange(5), Change(softcap=2.0), 2)
    first, second = (torch.autograd.grad(losses.sum(), weight, retain_graph=True)[0] for _ in range(2))
    assert first.any()
    assert torch.allclose(first, second, atol=1e-7)


@pytest.mark.parametrize("kind", ["lora", "saved"])
def test_a_head_with_modules_inside_is_called_and_not_read(kind: str) -> None:
    model = Divided()
    if kind == "lora":
        inject_adapter_in_model(LoraConfig(target_modules=["head"], r=2, init_lora_weights=False), model)
    else:
        model.head = ModulesToSaveWrapper(model.head, "default")
        with torch.no_grad():
            next(model.head.modules_to_save.parameters()).mul_(2)  # type: ignore[union-attr]
    logits = model(IDS)[:, :-1]
    full = nn.functional.cross_entropy(logits.flatten(0, 1), LABELS[:, 1:].flatten(), reduction="sum") / 7
    full.backward()
    expected = full.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any("lora_B" in name or "modules_to_save" in name for name in expected[1])
    assert_equal(step(model, 16), expected)
    assert full.item() != pytest.approx(step(Divided(), 16)[0], rel=1e-3), "the control: the head without them"
