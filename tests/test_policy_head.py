"""The vocabulary head: values and closed-form gradients, chunks, temperature, soft cap, precision."""

import pytest
import torch

from treerl.policy.head import Head, edge_logprobs


def plain(head, hidden, row, target, temperature):
    logits = hidden @ head.weight.T * head.scale
    if head.bias is not None:
        logits = (hidden @ head.weight.T + head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logp = torch.log_softmax(logits / temperature, -1)
    return logp[row, target], -(logp.exp() * logp).sum(-1)


def example(dtype=torch.float64, rows=9, vocabulary=23):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 6, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, 6, generator=generator, dtype=dtype)
    bias = torch.randn(vocabulary, generator=generator, dtype=dtype)
    # Rows 2 and 5 have several targets (siblings), row 2 the same target twice, row 3 none.
    row = torch.tensor([0, 1, 2, 2, 2, 4, 5, 5, 6, 7, 8])
    target = torch.tensor([3, 22, 7, 7, 1, 0, 4, 5, 9, 10, 11])
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), row, target


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 3.0)])
def test_equals_autograd(chunk, temperature, scale, softcap):
    hidden, weight, bias, row, target = example()
    head = Head(weight, bias, scale, softcap)
    wanted = plain(head, hidden, row, target, temperature)
    got = edge_logprobs(head, hidden, row, target, temperature=temperature, chunk_rows=chunk)
    a, b = torch.randn(len(row), dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    inputs = (hidden, weight, bias)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    theirs = torch.autograd.grad((wanted[0] * a).sum() + (wanted[1] * b).sum(), inputs)
    ours = torch.autograd.grad((got[0] * a).sum() + (got[1] * b).sum(), inputs)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, atol=1e-11, rtol=1e-11)


def test_hand_numbers():
    """p = (.5, .3, .2): H 1.029653, dH/dz (-.168253, .052296, .115957), dlp_0/dz (.5, -.3, -.2)."""
    z = torch.log(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)).requires_grad_()
    head = Head(torch.eye(3, dtype=torch.float64))
    lp, entropy = edge_logprobs(head, z, torch.tensor([0]), torch.tensor([0]))
    assert entropy.item() == pytest.approx(1.029653, abs=1e-6)
    (slope,) = torch.autograd.grad(entropy.sum(), z, retain_graph=True)
    assert slope[0].tolist() == pytest.approx([-0.168253, 0.052296, 0.115957], abs=1e-6)
    (slope,) = torch.autograd.grad(lp.sum(), z)
    assert slope[0].tolist() == pytest.approx([0.5, -0.3, -0.2], abs=1e-6)


def test_entropy_in_fp32_is_centred():
    """Logits around 900: lse - sum p z loses digits, the centred form does not."""
    logits = 900.0 + torch.randn(64, 40, generator=torch.Generator().manual_seed(1))
    row, target = torch.arange(64), torch.arange(64) % 40
    _, exact = edge_logprobs(Head(torch.eye(40).double()), logits.double(), row, target)
    _, ours = edge_logprobs(Head(torch.eye(40)), logits, row, target)
    naive = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    assert (ours - exact).abs().max() < 2e-6
    assert (naive - exact).abs().max() > 1e-5


def test_bfloat16_normalises_in_fp32():
    hidden, weight, _, row, target = example(torch.float32, vocabulary=300)
    target = target % 300
    lp, entropy = edge_logprobs(
        Head(weight.detach().bfloat16()), hidden.detach().bfloat16(), row, target
    )
    assert lp.dtype == entropy.dtype == torch.float32
    wanted, _ = plain(Head(weight.detach()), hidden.detach(), row, target, 1.0)
    assert (lp - wanted).abs().max() < 0.1


def test_without_entropy_the_gradient_is_that_of_lp():
    hidden, weight, bias, row, target = example()
    head = Head(weight, bias)
    lp, entropy = edge_logprobs(head, hidden, row, target, with_entropy=False, chunk_rows=3)
    assert entropy is None
    ours = torch.autograd.grad(lp.sum(), (hidden, weight))
    theirs = torch.autograd.grad(plain(head, hidden, row, target, 1.0)[0].sum(), (hidden, weight))
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, atol=1e-11, rtol=1e-11)
