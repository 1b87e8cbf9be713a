"""Synthetic data against their definitions."""

import math

import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.data import DataConfig, open_data, synthetic
from ssljax.data.sources import open_source
from ssljax.data.splits import Split


def table(name, split):
    return open_source(f"builtin:{name}").table(Split(split))


def test_sums_modulo_a_prime():
    halves = [table("modular-addition", split) for split in ("train", "test")]
    pairs = [(*map(ord, text), int(label)) for t in halves for text, label in zip(t.get("text"), t.get("label"))]
    assert len(pairs) == len(set(pairs)) == 97**2
    assert all((a - 31 + b - 31) % 97 == label and 31 <= a <= 127 and 31 <= b <= 127 for a, b, label in pairs)
    assert abs(len(halves[0].get("label")) - len(halves[1].get("label"))) == 1
    with pytest.raises(UserError, match="valid"):
        table("modular-addition", "valid")


def test_sums_of_numbers():
    found = {split: table("addition", split) for split in ("train", "valid", "test")}
    assert [len(t.get("text")) for t in found.values()] == [990_000, 5000, 5000]
    texts = [found[split].get("text")[row] for split in found for row in range(0, 5000, 50)]
    for text in texts:
        a, b, total = text[:3], text[4:7], text[8:]
        assert len(text) == 12 and text[3] + text[7] == "+=" and int(a) + int(b) == int(total[::-1])
    numbers = np.concatenate([t.numbers() for t in found.values()])
    assert len(set(numbers)) == 10**6 == len(set(synthetic._pairs()))
    with pytest.raises(UserError, match="builtin:addition"):
        table("addition", "dev")


def test_the_statistics_of_a_text_are_those_of_the_chain():
    text = "".join(synthetic.documents(range(80)))
    ids = np.array([synthetic.SYMBOLS.index(c) for c in text])
    counts = np.zeros((16, 16, 16))
    np.add.at(counts, (ids[:-2], ids[1:-1], ids[2:]), 1)
    triples = synthetic.stationary()[..., None] * synthetic.transitions()
    expected = triples * (len(ids) - 2)
    z = (counts - expected) / np.sqrt(np.maximum(expected, 1))
    assert np.abs(z[expected > 5]).max() < 6 and z[expected > 5].std() < 1.3  # neighbours are correlated


def test_entropies_are_those_of_blocks():
    """Conditional entropies are differences of entropies of blocks; the rate by the chain rule from blocks of four."""
    pairs, chain = synthetic.stationary(), synthetic.transitions()
    triples = pairs[..., None] * chain
    fours = triples[..., None] * chain[None]

    def entropy(p):
        return -sum(x * math.log(x) for x in p.ravel() if x > 0)

    blocks = [entropy(p) for p in (pairs.sum(0), pairs, triples, fours)]
    rates = np.diff(blocks)
    assert synthetic.entropies() == pytest.approx((blocks[0], rates[0], rates[1]), rel=1e-9)
    assert rates[2] == pytest.approx(rates[1], rel=1e-9), "two symbols tell all"
    assert synthetic.entropies()[0] > synthetic.entropies()[1] > synthetic.entropies()[2] > 0.5
    assert synthetic.floor(2) == pytest.approx(rates[0]) and synthetic.floor(10**6) == pytest.approx(rates[1], rel=1e-5)


def test_documents_are_fixed_and_differ():
    (three,), (zero, _, _, same) = synthetic.documents([3]), synthetic.documents(range(4))
    assert three == same != zero
    assert zero[:12] == "habdaaejcejg", "another text needs another _VERSION in data/builtin.py"
    train, test = (table("markov", split) for split in ("train", "test"))
    assert len(train.get("text")) == 4000 and len(test.get("text")) == 200
    assert set(train.numbers()).isdisjoint(test.numbers())


def test_a_window_has_a_byte_a_symbol():
    config = DataConfig(source="builtin:markov", split="valid", seq_len=64)
    spec = open_data(config, 8, 0).spec
    assert spec.bytes_per_token == pytest.approx(1, abs=1e-3)
