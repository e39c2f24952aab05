"""Uniforms by counter, truncation, and one drawn token, against numbers made by hand."""

import numpy as np
import torch

from treerl.config import SamplerSettings
from treerl.samplers.draw import draw, truncate, uniforms


def test_a_uniform_depends_on_seed_and_index_alone() -> None:
    seeds = np.array([5, 9, 2**63 - 1], dtype=np.uint64)
    whole = uniforms(seeds, np.zeros(3, dtype=np.int64), 10)
    part = uniforms(seeds[1:2], np.array([4]), 3)
    assert part[:, 0].tolist() == whole[4:7, 1].tolist()


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    seeds = np.arange(2000, dtype=np.uint64)
    drawn = uniforms(seeds, np.zeros(2000, dtype=np.int64), 50)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 19 + 4 * np.sqrt(38)
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.01


def test_the_nucleus_is_the_smallest_set_that_holds_top_p() -> None:
    p = torch.tensor([[0.125, 0.5, 0.25, 0.125]])
    assert truncate(p, 0, 0.75).tolist() == [[0, 0.5, 0.25, 0]]
    assert truncate(p, 0, 0.76).tolist() == [[0.125, 0.5, 0.25, 0]]
    assert truncate(p, 0, 0.01).tolist() == [[0, 0.5, 0, 0]]


def test_top_p_counts_within_top_k() -> None:
    p = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    # Of the two likeliest, 0.4 / 0.6 is 0.67 of the mass.
    assert truncate(p, 2, 0.66).tolist() == torch.tensor([[0.4, 0, 0, 0]]).tolist()
    assert truncate(p, 2, 0.67).tolist() == torch.tensor([[0.4, 0.2, 0, 0]]).tolist()


def test_inverse_cdf_in_the_order_of_ids() -> None:
    logits = torch.log(torch.tensor([[0.25, 0.5, 0.25]])).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.9999999999999999], dtype=torch.float64)
    tokens, logprobs, _ = draw(logits, uniform, SamplerSettings())
    assert tokens.tolist() == [0, 0, 1, 1, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.25, 0.25, 0.5, 0.5, 0.25]))


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    uniform = torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    tokens, logprobs, entropies = draw(logits, uniform, SamplerSettings())
    assert tokens.tolist() == [1, 3, 3]
    torch.testing.assert_close(logprobs.exp(), torch.full((3,), 0.5))
    torch.testing.assert_close(entropies, torch.full((3,), 0.5).log().neg())


def test_entropy_is_of_the_raw_logits_at_temperature_one() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]]))
    settings = SamplerSettings(temperature=0.3, top_p=0.5)
    tokens, logprobs, entropies = draw(logits, torch.tensor([0.9], dtype=torch.float64), settings)
    assert tokens.tolist() == [0]
    torch.testing.assert_close(logprobs, torch.zeros(1))
    torch.testing.assert_close(entropies, torch.tensor([1.75 * np.log(2)], dtype=torch.float32))


def test_temperature_and_renormalisation_enter_the_logprob() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    settings = SamplerSettings(temperature=0.5, top_k=2)
    uniform = torch.tensor([0.99], dtype=torch.float64)
    tokens, logprobs, _ = draw(logits, uniform, settings)
    assert tokens.tolist() == [1]
    # Squares: 0.25 and 0.09 of the two kept.
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.09 / 0.34]))
