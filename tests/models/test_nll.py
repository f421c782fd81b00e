"""The loss of a head and its gradients, made in one pass, are those of the plain computation."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from glmft.models import nll as module
from glmft.models.head import OutputLayer, supervised_nll
from glmft.models.nll import summed_nll

WORDS, SIZE = 301, 16
BLOCKS = {"one block": {}, "many blocks": {"ON_CPU": 112, "ROWS": 7, "NARROWEST": 16, "WHOLE": 7 * WORDS}}


@pytest.fixture(params=BLOCKS)
def blocks(request, monkeypatch):
    for name, size in BLOCKS[request.param].items():
        monkeypatch.setattr(module, name, size)


def parts(rows: int, bias: bool = False, scale: float = 1.0) -> tuple:
    """targets [rows]; hidden [rows, SIZE], weight [WORDS, SIZE] and, if asked for, bias."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, SIZE, generator=generator)
    weight = torch.randn(WORDS, SIZE, generator=generator) * scale
    return torch.randint(0, WORDS, (rows,), generator=generator), hidden, weight, torch.randn(WORDS) if bias else None


def one_pass(targets, hidden, weight, bias):
    return summed_nll(hidden, targets, weight, bias)


def plain(targets, hidden, weight, bias):
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="sum")


def in_double(targets, hidden, weight, bias):
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")


def computed(loss, targets, *given, trains=False, dtype=torch.float32, factor=0.37):
    """The loss, and the gradients of what trains for a loss that is scaled on its way, as the loop scales it."""
    hidden, weight, bias = (None if t is None else t.to(dtype, copy=True) for t in given)
    learned = [hidden, *(t for t in (weight, bias) if trains and t is not None)]
    for tensor in learned:
        tensor.requires_grad_()
    total = loss(targets, hidden, weight, bias)
    return total.item(), [g.double() for g in torch.autograd.grad(total * factor, learned)]


def error(got, want) -> float:
    """The largest difference over the largest number."""
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("rows", "scale"), [(1, 1.0), (23, 1.0), (23, 40.0)])
def test_loss_and_gradients_are_the_plain_ones(rows, scale, bias, trains, blocks):
    given = parts(rows, bias, scale)
    loss, gradients = computed(one_pass, *given, trains=trains)
    exact, wanted = computed(in_double, *given, trains=trains, dtype=torch.float64)
    _, usual = computed(plain, *given, trains=trains)
    assert loss == pytest.approx(exact, rel=1e-6)
    for got, want, theirs in zip(gradients, wanted, usual, strict=True):
        assert error(got, want) <= 1e-6 + 2 * error(theirs, want)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("autocast", [False, True])
def test_under_bfloat16_it_is_as_near_to_the_exact_gradient(autocast, trains, blocks):
    targets, *given = parts(67)
    given = [None if t is None else t.bfloat16().float() for t in given]  # the same numbers in both formats
    dtype = torch.float32 if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, gradients = computed(one_pass, targets, *given, trains=trains, dtype=dtype)
        theirs, usual = computed(plain, targets, *given, trains=trains, dtype=dtype)
    exact, wanted = computed(in_double, targets, *given, trains=trains, dtype=torch.float64)
    assert loss == pytest.approx(theirs, rel=1e-6)
    assert loss == pytest.approx(exact, rel=1e-2)
    for got, want, other in zip(gradients, wanted, usual, strict=True):
        assert error(got, want) <= 1.5 * error(other, want) < 0.02


@pytest.mark.parametrize(("trains", "products"), [(None, 1), (False, 2), (True, 3)])
def test_no_product_with_the_vocabulary_is_made_twice(trains, products, blocks):
    """One for the loss, one for each gradient that is wanted."""
    targets, hidden, weight, _ = parts(40)
    with FlopCounterMode(display=False) as counted:
        if trains is None:
            with torch.no_grad():
                summed_nll(hidden.requires_grad_(), targets, weight, None)
        else:
            summed_nll(hidden.requires_grad_(), targets, weight.requires_grad_(trains), None).backward()
    assert counted.get_total_flops() == products * 2 * 40 * WORDS * SIZE


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation gives."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() == tensor.nbytes:
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
def test_at_no_number_of_labels_are_there_logits_of_all_of_them(trains, monkeypatch):
    for name, size in BLOCKS["many blocks"].items():
        monkeypatch.setattr(module, name, size)
    targets, hidden, weight, _ = parts(200)
    with Largest() as largest:
        summed_nll(hidden.requires_grad_(), targets, weight.requires_grad_(trains), None).backward()
    assert 0 < largest.numel <= max(200, WORDS) * SIZE < 200 * WORDS


def test_no_labels_cost_nothing_and_give_a_gradient_of_zero():
    _, hidden, weight, _ = parts(3)
    for trains in (False, True):
        weight.requires_grad_(trains)
        rows = hidden.clone().requires_grad_()
        loss = summed_nll(rows[:0], torch.zeros(0, dtype=torch.long), weight, None)
        loss.backward()
        assert loss.item() == 0
        assert not rows.grad.any()


def test_no_value_is_looked_at():
    """Which would make an accelerator wait: on the meta device there are none."""
    for trains in (False, True):
        hidden = torch.randn(5, SIZE, device="meta", requires_grad=True)
        weight = torch.randn(WORDS, SIZE, device="meta", requires_grad=trains)
        targets = torch.zeros(5, dtype=torch.long, device="meta")
        summed_nll(hidden, targets, weight, None).backward()
        assert hidden.grad.shape == hidden.shape
        assert (weight.grad is not None) == trains


def test_a_graph_that_is_kept_can_be_gone_through_again():
    targets, hidden, weight, _ = parts(9)
    hidden.requires_grad_()
    loss = summed_nll(hidden, targets, weight.requires_grad_(), None)
    once, again = (torch.autograd.grad(loss, (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


class Small(nn.Module):
    """A model that is nearly all head."""

    def __init__(self):
        super().__init__()
        self.inner, self.lm_head = nn.Linear(SIZE, SIZE), OutputLayer(SIZE, WORDS, bias=False)

    def forward(self, hidden, labels, in_one_pass=True):
        hidden = self.inner(hidden)
        if in_one_pass:
            return supervised_nll(hidden, labels, self.lm_head, num_items_in_batch=1)
        return F.cross_entropy(self.lm_head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize("rows", [20, 600])
@pytest.mark.parametrize(
    "how",
    [
        {"target_modules": ["inner"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["inner", "lm_head"], "init_lora_weights": False},
    ],
    ids=["trained whole", "under LoRA"],
)
def test_a_head_that_peft_has_wrapped_has_the_plain_gradients(how, rows):
    torch.manual_seed(0)
    model = get_peft_model(Small(), LoraConfig(r=2, **how))
    hidden, labels = torch.randn(2, rows // 2 + 1, SIZE), torch.randint(0, WORDS, (2, rows // 2 + 1))
    learned = [p for p in model.parameters() if p.requires_grad]
    got, want = (torch.autograd.grad(model(hidden, labels, way), learned) for way in (True, False))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
