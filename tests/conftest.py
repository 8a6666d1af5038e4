"""Small worlds to test in, made from a seed; no real data is needed."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, settings

from lorec.data import Dataset, Sequences, Split, leave_two_out

# No law is about seconds: a busy machine is not a failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def world(users: int = 80, items: int = 60, length: int = 14, seed: int = 0, groups: int = 4) -> Dataset:
    """People walk through their group's items in order, with slips, so that the next item can be learned."""
    rng = np.random.default_rng(seed)
    per_group = items // groups
    rows = []
    for user in range(users):
        group = user % groups
        place = int(rng.integers(per_group))
        n = int(rng.integers(max(length // 2, 3), length + 1))
        for step in range(n):
            slip = rng.random() < 0.15
            item = int(rng.integers(items)) if slip else group * per_group + place % per_group
            rows.append((f"u{user:03d}", f"i{item:03d}", step // 2))
            place += 1
    log = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time": pl.Int64}, orient="row")
    catalogue = pl.DataFrame(
        {
            "item": [f"i{n:03d}" for n in range(items)],
            "title": [f"thing {n} of group {n // per_group}" for n in range(items)],
        }
    )
    return Dataset("tiny", log, catalogue)


def shop(users: int = 3000, items: int = 900, groups: int = 30, seed: int = 0) -> Dataset:
    """Short histories and a long tail: people take a few things of one or two kinds, popular ones first."""
    rng = np.random.default_rng(seed)
    group_of = rng.permutation(np.arange(items) % groups)
    fame = 1 / rng.permutation(np.arange(2, items + 2)) ** 0.8
    rows = []
    for user in range(users):
        tastes = rng.choice(groups, 2)
        liked = np.where(group_of == tastes[0], 1.0, np.where(group_of == tastes[1], 0.5, 0.004)) * fame
        length = min(3 + int(rng.geometric(0.22)), 25)
        taken = rng.choice(items, length, replace=False, p=liked / liked.sum())
        rows += [(f"u{user:04d}", f"i{item:03d}", step) for step, item in enumerate(taken)]
    log = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time": pl.Int64}, orient="row")
    words = [f"thing {item} for kind {chr(97 + kind % 26) * 4}{kind}" for item, kind in enumerate(group_of)]
    return Dataset("shop", log, pl.DataFrame({"item": [f"i{n:03d}" for n in range(items)], "title": words}))


@pytest.fixture(scope="session")
def town() -> Split:
    """The shop's log, split."""
    return leave_two_out(shop())


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The worlds are so small that threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    return world()


@pytest.fixture(scope="session")
def split(tiny: Dataset) -> Split:
    return leave_two_out(tiny)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def log(split: Split) -> Sequences:
    return split.train


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a small language model that has learned nothing, as transformers saves them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator(["a game console controller", "these are the items"] * 4, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    folder = tmp_path_factory.mktemp("tiny model")
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, initializer_range=0.3,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
