"""Data at real size: decoding, tokenisation, memory, waiting and start-up, beside the libraries they rest on.

    python benchmarks/data.py                       # all parts
    python benchmarks/data.py decode tokens start    # some of them

decode: images per second of JPEG files of 256 pixels that arrive as arrays in the process that trains: threads of this
    package (the whole picture, squeezed; the random crop follows on the device), against one worker process per core
    with Pillow (a random crop, resized to 224), and against processes that drop the pixels. Medians of ten turns.
tokens: megabytes of text per second into the cache of tokens, against `encode_batch_fast` of `tokenizers` alone.
document: growth of the memory while one text of 1 GB, a single document, is tokenised.
memory: growth of the resident memory while batches are read from 20 GB of Parquet, ArrayRecord and tar files, in random
    order. The files are hard links to one file per format. Pages of mapped files, which the system may drop at any
    time, are not counted.
wait: share of the time that a loop of steps of 100 ms waits for its batches of 64 images.
start: seconds from `open_data` to the first batch of a million rows of Parquet and of ArrayRecord.
"""

import argparse
import concurrent.futures
import gc
import io
import multiprocessing
import os
import pathlib
import random
import statistics
import tempfile
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from ssljax.data import DataConfig, Prefetcher, TokenizerConfig, open_data
from ssljax.data.config import SourceConfig
from ssljax.data.text import open_tokens
from ssljax.data.tokenizers import open_tokenizer

CORES = len(os.sched_getaffinity(0))
TOTAL = 20e9  # bytes of generated files


def jpeg(rng, side=256):
    """A JPEG file of noise that is smooth like a photograph, about 20 KB."""
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((side * 4 // 3, side), Image.BICUBIC)
    fine = rng.normal(0, 6, (side, side * 4 // 3, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def peer(content):
    """Decodes an image and resizes a random crop of it, as torchvision's `RandomResizedCrop` does."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    side = int(min(image.size) * random.uniform(0.5, 1))
    left, top = random.randint(0, image.width - side), random.randint(0, image.height - side)
    return np.asarray(image.resize((224, 224), Image.BILINEAR, (left, top, left + side, top + side)))


def peer_alone(content):
    """Decodes and resizes as `peer`, and drops the pixels."""
    return peer(content).shape


def write_parquet(path, rows, group=256):
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path, row_group_size=group)


def config(source, **keys):
    return DataConfig(source=source, keys={"image": "image"}, image_size=256, image_fit="squeeze", **keys)


def decode(folder):
    rng = np.random.default_rng(0)
    files = [jpeg(rng) for _ in range(512)]
    write_parquet(folder / "x.parquet", [{"image": file} for file in files])
    dataset = open_data(config(f"parquet:{folder}/x.parquet", images="encoded"), batch_size=256)
    with concurrent.futures.ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(peer, files, chunksize=16))  # starts the processes
        dataset.batch(0)
        rates = {"ours": [], "delivered": [], "alone": []}
        for step in range(0, 40, 4):  # in turns, since the speed of a machine varies
            began = time.perf_counter()
            for part in range(4):
                dataset.batch(step + part)
            rates["ours"].append(4 * 256 / (time.perf_counter() - began))
            for name, work in (("delivered", peer), ("alone", peer_alone)):
                began = time.perf_counter()
                list(pool.map(work, files * 2, chunksize=16))
                rates[name].append(1024 / (time.perf_counter() - began))
    ours, delivered, alone = (statistics.median(values) / CORES for values in rates.values())
    print(f"decode: {ours:,.0f} images/s a core; Pillow in processes {delivered:,.0f}: ratio {ours / delivered:.2f}")
    print(f"decode: Pillow in processes that drop the pixels {alone:,.0f}: ratio {ours / alone:.2f}")


def tokens(folder):
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(20_000)]
    texts = [" ".join(rng.choices(words, k=rng.randint(20, 800))) for _ in range(20_000)]
    pq.write_table(pa.table({"text": texts}), folder / "t.parquet", row_group_size=1000)
    size = sum(map(len, texts)) / 1e6
    source = SourceConfig(f"parquet:{folder}/t.parquet", keys={"text": "text"})
    settings = TokenizerConfig("bpe", vocab_size=8192)
    data = DataConfig(source.source, keys=source.keys, seq_len=64, tokenizer=settings, cache_dir=str(folder))
    tokenizer = open_tokenizer(data)
    model = tokenizer._model
    model.encode_batch_fast(texts[:100])
    began = time.perf_counter()
    for start in range(0, len(texts), 2000):
        model.encode_batch_fast(texts[start : start + 2000], add_special_tokens=False)
    theirs = size / (time.perf_counter() - began)
    began = time.perf_counter()
    open_tokens(source, tokenizer, folder)
    ours = size / (time.perf_counter() - began)
    print(f"tokens: {ours:.1f} MB/s into the cache, `tokenizers` alone {theirs:.1f}: ratio {ours / theirs:.2f}")


def document(folder):
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(20_000)]
    block = "\n".join(" ".join(rng.choices(words, k=12)) for _ in range(100_000)) + "\n"
    with (folder / "one.txt").open("w") as file:
        for _ in range(int(1e9 / len(block))):
            file.write(block)
    (folder / "small.txt").write_text(block)
    settings = TokenizerConfig("bpe", vocab_size=8192)
    tokenizer = open_tokenizer(DataConfig(f"text:{folder}/small.txt", seq_len=64, tokenizer=settings))
    before, largest, done = own_memory(), [0], threading.Event()

    def watch():
        while not done.wait(0.05):
            largest[0] = max(largest[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    cache = open_tokens(SourceConfig(f"text:{folder}/one.txt"), tokenizer, folder)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    growth = (largest[0] - before) / 1e6
    print(f"document: 1 GB, {len(cache.tokens):,} tokens: {growth:,.0f} MB more memory, {1e3 / seconds:.1f} MB/s")


def shards(folder, kind, rows):
    """Writes one file of rows and links to it, 20 GB together; returns their pattern."""
    ending = {"parquet": "parquet", "array_record": "array_record", "webdataset": "tar"}[kind]
    first = folder / f"0.{ending}"
    if kind == "parquet":
        write_parquet(first, rows)
    elif kind == "array_record":
        import msgpack

        writer = ArrayRecordWriter(str(first), "group_size:1")
        for row in rows:
            writer.write(msgpack.packb(row))
        writer.close()
    else:
        import tarfile

        with tarfile.open(first, "w") as tar:
            for i, row in enumerate(rows):
                info = tarfile.TarInfo(f"{i}.jpg")
                info.size = len(row["image"])
                tar.addfile(info, io.BytesIO(row["image"]))
    for i in range(1, int(TOTAL / first.stat().st_size) + 1):
        os.link(first, folder / f"{i}.{ending}")
    return f"{kind}:{folder}/*.{ending}"


def own_memory():
    """Bytes of memory that belong to this process alone."""
    fields = dict(line.split(":") for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def memory(folder):
    rng = np.random.default_rng(0)
    rows = [{"image": jpeg(rng)} for _ in range(4096)]
    for kind in ("parquet", "array_record", "webdataset"):
        place = folder / kind
        place.mkdir()
        gc.collect()
        before, began = own_memory(), time.perf_counter()
        dataset = open_data(config(shards(place, kind, rows), images="encoded"), batch_size=64)
        largest = 0
        for step in range(200):
            dataset.batch(step)
            largest = max(largest, own_memory())
        seconds = time.perf_counter() - began
        print(f"memory: {kind}, {dataset.spec.size:,} images: {(largest - before) / 1e6:,.0f} MB, {seconds:.0f} s")


def wait(folder):
    rng = np.random.default_rng(0)
    write_parquet(folder / "w.parquet", [{"image": jpeg(rng)} for _ in range(1024)])
    dataset = open_data(config(f"parquet:{folder}/w.parquet", images="encoded"), batch_size=64)
    with Prefetcher(dataset.batch, lambda batch: batch, 0, 60, 2) as batches:
        next(batches)
        waited, began = batches.wait_seconds, time.perf_counter()
        for _ in batches:
            time.sleep(0.1)
        share = (batches.wait_seconds - waited) / (time.perf_counter() - began)
    print(f"wait: {100 * share:.1f} % of the time, steps of 100 ms with 64 images")


def start(folder):
    count, content = 1_000_000, jpeg(np.random.default_rng(0), 32)
    labels = np.arange(count) % 1000
    table = pa.table({"image": pa.array([content] * count), "label": labels})
    pq.write_table(table, folder / "m.parquet", row_group_size=10_000)
    import msgpack

    writer = ArrayRecordWriter(str(folder / "m.array_record"), "group_size:1")
    for label in labels:
        writer.write(msgpack.packb({"image": content, "label": int(label)}))
    writer.close()
    for kind in ("parquet", "array_record"):
        began = time.perf_counter()
        data = DataConfig(f"{kind}:{folder}/m.{kind}", image_size=32, images="encoded")
        open_data(data, batch_size=64).batch(0)
        print(f"start: {time.perf_counter() - began:.1f} s for {count:,} rows of {kind}")


PARTS = {"decode": decode, "tokens": tokens, "document": document, "memory": memory, "wait": wait, "start": start}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    for name in parser.parse_args().parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SSLJAX_CACHE"] = str(pathlib.Path(folder) / "cache")
            PARTS[name](pathlib.Path(folder))


if __name__ == "__main__":
    main()
