"""Generation and mask filling from workdirs and Hugging Face folders, through the command line."""

import builtins
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import tokenizers
from daily import daily

from ssljax import cli, run, runs
from ssljax.base.errors import UserError
from ssljax.evals import prompts
from ssljax.evals.generation import Sampling, generate
from ssljax.interop import hf
from ssljax.runs.export import export
from ssljax.runs.prompting import language_model

FOLDER = pathlib.Path(os.environ.get("SSLJAX_DATA", "missing")).parent / "hf_parity"
fixtures = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference models in {FOLDER}")

TINY = {"preset": None, "width": 16, "depth": 1, "heads": 2}
RUN = {
    "optimizer": {"name": "adamw"},
    "steps": 2,
    "batch_size": 8,
    "log": {"progress": False, "trackers": [], "pictures": False},
}


def trained(folder, model, objective, keys=None, **data):
    text = folder / "text.jsonl"
    lines = [json.dumps({"text": f"the {word} sat on the mat and saw the {word}"}) for word in ("cat", "dog") * 20]
    text.write_text("\n".join(lines))
    source = {"source": f"jsonl:{text}", "seq_len": 24, "cache_dir": str(folder / "cache"), **data}
    sizes = {"width": 16} if model == "word_vectors" else TINY
    groups = {"model": {"name": model, **sizes, **(keys or {})}, "objective": {"name": objective}}
    config = {**RUN, **groups, "data": source}
    run.train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("decoder"), "gpt", "causal_lm")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    tokenizer = {"name": "wordpiece", "vocab_size": 300}
    return trained(tmp_path_factory.mktemp("encoder"), "bert", "mlm", tokenizer=tokenizer, mode="documents")


def command(capsys, *words):
    """Runs a command; returns the exit code, the lines of stdout, and the error line."""
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in captured.err and len(errors) == (code == 2)
    return code, captured.out.splitlines(), "".join(errors)


def test_generate_from_a_workdir(decoder, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("the dog\n\nthe mat\n")
    words = ["generate", decoder, "--prompt", "the cat", "--file", tmp_path / "prompts.txt", "--max-new-tokens", 6]
    code, lines, _ = command(capsys, *words, "--json")
    answers = [json.loads(line) for line in lines]
    assert code == 0 and [a["prompt"] for a in answers] == ["the cat", "the dog", "the mat"]
    model = runs.language_model(decoder)
    assert model.end_ids == (258,) and model.affixes == ((), ())
    ids = [list(a["prompt"].encode()) for a in answers]
    made = generate(model.module, model.params, ids, Sampling(max_new_tokens=6, stop=((258,),)), mesh=model.mesh)
    assert [a["text"] for a in answers] == [bytes(i for i in row if i < 256).decode(errors="replace") for row in made]
    drawn = [command(capsys, *words, "--temperature", 2, "--top-k", 50, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_terminal_shows_prompts_and_texts_apart(decoder, capsys, monkeypatch):
    words = ["generate", decoder, "--prompt", "the cat", "--max-new-tokens", 6, "--temperature", 3]
    piped = command(capsys, *words)[1]
    (text,) = runs.generate(decoder, ["the cat"], Sampling(6, temperature=3.0))
    assert "\n".join(piped) == text.rstrip("\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    printed: list[str] = []
    monkeypatch.setattr(builtins, "print", lambda *a, end="\n", **k: printed.append("".join(a) + end))
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main([str(word) for word in words]) == 0
    monkeypatch.undo()
    assert "> the cat" in capsys.readouterr().out
    assert "".join(printed) == text + "\n\n" and len(printed) > 2  # in parts


def test_watched_texts_only_grow(decoder):
    model, sampling, key = runs.language_model(decoder), Sampling(max_new_tokens=17, temperature=3.0), jax.random.key(0)
    (whole,) = prompts.complete(model, ["the cat"], sampling, key)
    for stop in ([], [whole[4:6]], [whole[4:6] + "never seen"]):
        seen: list[str] = []
        (text,) = prompts.complete(model, ["the cat"], sampling, key, stop=stop, watch=seen.append)
        assert all(text.startswith(part) for part in seen) and seen == sorted(seen, key=len)
        assert prompts.complete(model, ["the cat"], sampling, key, stop=stop) == [text]


def test_a_text_ends_before_the_stop_text(decoder):
    model, sampling, key = runs.language_model(decoder), Sampling(max_new_tokens=17, temperature=3.0), jax.random.key(0)
    (whole,) = prompts.complete(model, ["the cat"], sampling, key)
    stop = whole[4:6]
    assert len(stop) == 2
    (cut,) = prompts.complete(model, ["the cat"], sampling, key, stop=["never seen", stop])
    assert cut == whole[: whole.index(stop)]


def test_fill_mask_from_a_workdir(encoder, capsys):
    texts = ["the [MASK] sat on the [MASK]", "[MASK] cat"]
    code, lines, _ = command(
        capsys, "fill-mask", encoder, "--prompt", texts[0], "--prompt", texts[1], "--top", 3, "--json"
    )
    answers = [json.loads(line) for line in lines]
    assert code == 0 and [len(a["masks"]) for a in answers] == [2, 1]
    model = runs.language_model(encoder)
    size = model.tokenizer.get_vocab_size()
    complete = prompts.fill(model, texts, top=10_000)
    for answer, masks in zip(answers, complete):
        for few, all_ in zip(answer["masks"], masks):
            assert few == [guess._asdict() for guess in all_[:3]]
            assert len(all_) == size and {guess.id for guess in all_} == set(range(size))
            np.testing.assert_allclose(sum(guess.probability for guess in all_), 1, rtol=1e-5)
    # [CLS] and [SEP] stand around the text, as in training.
    assert model.encode("cat").tolist()[0] == 2 and model.encode("cat").tolist()[-1] == 3
    code, lines, _ = command(capsys, "fill-mask", encoder, "--prompt", texts[0], "--top", 3)
    assert lines[0] == texts[0] and len(lines) == 7 and lines[4].split()[0] == "2"


def words_tokenizer(folder, name, size=211, mask="[MASK]", end=None):
    """Copies a reference model and adds a tokenizer of the words w3, w4, ...; returns the folder."""
    shutil.copytree(FOLDER / name, folder, dirs_exist_ok=True)
    vocabulary = {"[UNK]": 0, "</s>": 1, mask: 2} | {f"w{i}": i for i in range(3, size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in ("[UNK]", "</s>", mask)])
    if end is not None:
        processor = tokenizers.processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
        tokenizer.post_processor = processor
    tokenizer.enable_truncation(2)  # ignored: it is for training batches
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@fixtures
def test_a_decoder_of_hugging_face(tmp_path, capsys):
    folder = words_tokenizer(tmp_path, "gpt2")
    model = hf.load(folder)
    texts = ["w5 w9 w7 w20", "w6"]
    code, lines, _ = command(
        capsys, "generate", folder, "--prompt", texts[0], "--prompt", texts[1], "--max-new-tokens", 8, "--json"
    )
    ids = [[5, 9, 7, 20], [6]]
    made = generate(model.module, model.variables["params"], ids, Sampling(max_new_tokens=8))
    assert code == 0
    for line, row in zip(lines, made):
        assert json.loads(line)["text"].split() == [f"w{i}" for i in row if i > 2]


def test_a_prompt_is_text_unless_asked_otherwise(decoder, encoder, tmp_path):
    """Special tokens that a prompt spells are text; the mask of a model that predicts masks is the exception."""
    model = runs.language_model(decoder)
    assert model.encode("a<eos>").tolist() == list(b"a<eos>")
    assert model.encode("a<eos>", special_tokens=True).tolist() == [ord("a"), 258]
    model = runs.language_model(encoder)
    first, *ids, last = model.encode("[SEP] [MASK] [PAD]").tolist()
    assert (first, last) == (2, 3) and ids.count(4) == 1 and not {0, 2, 3} & set(ids)
    with pytest.raises(UserError, match=r"prompt 2: character 1 is .*half of a surrogate pair"):
        prompts.fill(model, ["[MASK]", "a\udcff [MASK]"])


@fixtures
def test_special_tokens_in_prompts_of_hugging_face_models(tmp_path, capsys):
    """The role of `w7` is stated beside the tokenizer only, and T5's sentinels are special tokens that users write."""
    folder = words_tokenizer(tmp_path, "t5", end="</s>")
    model = prompts.imported(hf.load(folder))
    assert model.encode("w5 </s> w9").tolist() == [5, 0, 9, 1]  # an unknown word
    assert model.encode("w5 </s> w9", special_tokens=True).tolist() == [5, 1, 9, 1]
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "w7"}))
    assert prompts.imported(hf.load(folder)).encode("w5 w7 w9").tolist() == [5, 0, 9, 1]
    words = ["generate", folder, "--prompt", "w5 </s> w9", "--max-new-tokens", 4]
    plain, special = (command(capsys, *words, *more)[1] for more in ((), ("--special-tokens",)))
    want = [prompts.complete(model, ["w5 </s> w9"], Sampling(4), special_tokens=s)[0] for s in (False, True)]
    assert [plain[0], special[0]] == want


@fixtures
def test_the_tokenizer_of_a_folder_neither_pads_nor_truncates(tmp_path):
    folder = words_tokenizer(tmp_path, "bert")
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.enable_padding(length=128)
    model.enable_truncation(2)
    model.save(str(folder / "tokenizer.json"))
    assert hf.load(folder).tokenizer.encode("w5 w9 w7 w20").ids == [5, 9, 7, 20]


@pytest.mark.parametrize("start", [pytest.param(0, marks=pytest.mark.full), 7])
def test_an_encoder_decoder_of_a_workdir_answers_as_its_export(tmp_path, start):
    folder = trained(tmp_path, "t5", "span_corruption", keys={"vocab_size": 300, "decoder_start": start})
    export(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["decoder_start_token_id"] == start
    models = language_model(folder), language_model(tmp_path / "out")
    assert [model.decoder_start for model in models] == [(start,)] * 2
    answers = [prompts.complete(model, ["the cat", "a dog sat"], Sampling(12)) for model in models]
    assert answers[0] == answers[1]


@fixtures
def test_keys_of_generation_config_without_effect_are_named(tmp_path, caplog):
    folder = words_tokenizer(tmp_path, "gpt2")
    stated = {"eos_token_id": 3, "num_beams": 4, "suppress_tokens": [7], "transformers_version": "5", "top_k": None}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    assert prompts.imported(hf.load(folder)).end_ids == (3,)
    assert "without effect: num_beams, suppress_tokens" in caplog.text
    caplog.clear()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, "use_cache": True}))
    prompts.imported(hf.load(folder))
    assert "without effect" not in caplog.text


@fixtures
def test_null_in_generation_config_states_nothing(tmp_path):
    folder = words_tokenizer(tmp_path, "bart")
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": None, "eos_token_id": None}))
    model = prompts.imported(hf.load(folder))
    assert model.decoder_start[0] == json.loads((folder / "config.json").read_text())["decoder_start_token_id"]
    assert model.end_ids


@fixtures
@pytest.mark.parametrize("ends", [[1, 7], None])
def test_an_encoder_decoder_of_hugging_face(tmp_path, ends):
    folder = words_tokenizer(tmp_path, "t5", end="</s>")
    model = prompts.imported(hf.load(folder))
    assert model.decoder_start == (0,) and model.end_ids == (1,) and model.encode("w5 w9 w4").tolist() == [5, 9, 4, 1]
    if ends is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "forced_bos_token_id": 4}))
        model = prompts.imported(hf.load(folder))
        assert model.decoder_start == (0, 4) and model.end_ids == (1, 7)
    texts = ["w5 w9 w4", "w8"]
    rows = [model.encode(text) for text in texts]
    stop = tuple((i,) for i in model.end_ids)
    made = generate(model.module, model.params, rows, Sampling(9, stop=stop), start=model.decoder_start)
    want = [" ".join(f"w{i}" for i in row if i > 2) for row in made]
    assert [" ".join(text.split()) for text in prompts.complete(model, texts, Sampling(9))] == want


@fixtures
@pytest.mark.parametrize(("name", "mask"), [("bert", "[MASK]"), ("roberta", "<mask>")])
def test_masks_of_hugging_face_models(tmp_path, name, mask):
    model = hf.load(words_tokenizer(tmp_path, name, mask=mask))
    (few, (second,)) = prompts.fill(prompts.imported(model), ["w5 [MASK] w9 [MASK] w4", f"{mask} w8"], top=4)
    for masks, ids in ((few, [5, 2, 9, 2, 4]), ([second], [2, 8])):
        logits = model.forward(input_ids=np.array([ids]))["logits"][0]
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        for guesses, place in zip(masks, [i for i, token in enumerate(ids) if token == 2], strict=True):
            assert [guess.id for guess in guesses] == np.argsort(-p[place])[:4].tolist()
            np.testing.assert_allclose([guess.probability for guess in guesses], np.sort(p[place])[::-1][:4], rtol=1e-4)
            assert all(guess.token in (f"w{guess.id}", "[UNK]", "</s>", mask) for guess in guesses)


def pieces(path, **settings):
    """Trains a SentencePiece model of a few words, with [MASK] as a control symbol; returns its path."""
    sentencepiece = pytest.importorskip("sentencepiece")
    words = ["one", "giant", "leap", "for", "man", "kind", "small", "step", "and", "the", "moon"]
    text = path.with_suffix(".txt")
    text.write_text("\n".join(" ".join(np.random.default_rng(i).choice(words, 8)) for i in range(200)))
    settings = {"vocab_size": 32, "control_symbols": ["[MASK]"], "minloglevel": 2, **settings}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(path.with_suffix("")), **settings)
    return path


@fixtures
@pytest.mark.parametrize(("name", "file"), [("llama", "tokenizer.model"), ("t5", "spiece.model")])
def test_folders_with_only_a_sentence_piece_model(tmp_path, capsys, name, file):
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    processor = hf.load(pieces(folder / file).parent).tokenizer
    ids = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | ids))
    model = runs.language_model(folder)
    plain = processor.encode("one giant leap").ids
    # A prompt of LLaMA begins with the first token, a prompt of T5 ends with the last token.
    assert model.encode("one giant leap").tolist() == ([1, *plain] if name == "llama" else [*plain, 2])
    words = ["--prompt", "one giant leap", "--max-new-tokens", 9, "--temperature", 5, "--json"]
    code, lines, _ = command(capsys, "generate", folder, *words)
    sampling = Sampling(max_new_tokens=9, temperature=5.0, stop=((2,),))
    rows = [model.encode("one giant leap")]
    (made,) = generate(model.module, model.params, rows, sampling, jax.random.key(0), start=model.decoder_start)
    assert code == 0 and max(made) >= 32  # ids beyond the pieces of the file are empty text
    whole = [*rows[0], *made] if name == "llama" else made
    want = processor.decode([i for i in whole if i < 32])
    assert json.loads(lines[0])["text"] == (want.removeprefix("one giant leap") if name == "llama" else want)
    assert processor.decode([7, 90]) == processor.decode([7]) and processor.id_to_token(90) == ""


@fixtures
def test_masks_of_a_folder_with_only_a_sentence_piece_model(tmp_path, capsys):
    folder = shutil.copytree(FOLDER / "bert", tmp_path / "bert")
    processor = hf.load(pieces(folder / "spiece.model").parent).tokenizer
    before, after = (processor.encode(text).ids for text in ("one", "leap"))
    model = prompts.imported(hf.load(folder))
    assert model.encode("one [MASK] leap").tolist() == [*before, processor.token_to_id("[MASK]"), *after]
    code, lines, _ = command(capsys, "fill-mask", folder, "--prompt", "one [MASK] leap", "--top", 300, "--json")
    (guesses,) = json.loads(lines[0])["masks"]
    assert code == 0 and len(guesses) == 211 and {g["token"] for g in guesses if g["id"] >= 32} == {""}


@pytest.mark.parametrize(("name", "objective"), daily([("gpt", "causal_lm"), ("bert", "mlm")], 4))
def test_workdirs_with_a_sentence_piece_model(tmp_path, name, objective):
    tokenizer = {"name": "file", "path": str(pieces(tmp_path / "spiece.model"))}
    folder = trained(tmp_path, name, objective, tokenizer=tokenizer)
    if name == "gpt":
        assert len(runs.generate(folder, ["one giant", "leap"], Sampling(4, temperature=1.0))) == 2
    else:
        ((guesses,),) = runs.fill_mask(folder, ["one [MASK] leap"], 100)
        assert len(guesses) == 32 and {"▁one", "one"} & {guess.token for guess in guesses}


def test_errors_on_workdirs(decoder, encoder, capsys, tmp_path):
    def refused(message, *words):
        code, _, error = command(capsys, *words)
        assert code == 2 and message in error, error

    refused("holds no config.json", "generate", tmp_path, "--prompt", "a")
    refused("--prompt: missing", "generate", decoder)
    refused("prompt 1: is empty", "generate", decoder, "--prompt", "")
    refused("24 positions of the model (model.max_len)", "generate", decoder, "--prompt", "the cat " * 3)
    refused("generate.top_p: got 2.0, must be <= 1", "generate", decoder, "--prompt", "a", "--top-p", "2")
    refused("stop 2: is empty", "generate", decoder, "--prompt", "a", "--stop", "b", "--stop", "")
    refused("is an encoder, must be a decoder or an encoder-decoder", "generate", encoder, "--prompt", "a")
    refused(
        "is a decoder, must be a model that was trained to predict masked tokens",
        "fill-mask",
        decoder,
        "--prompt",
        "a <mask>",
    )
    (tmp_path / "xlnet").mkdir()
    (tmp_path / "words").mkdir()
    others = [trained(tmp_path / "xlnet", "xlnet", "xlnet"), trained(tmp_path / "words", "word_vectors", "word2vec")]
    for run_of_another in others:
        words = ("fill-mask", run_of_another, "--prompt", "a [MASK]")
        refused("is an encoder, must be a model that was trained to predict masked tokens", *words)
    refused("prompt 1: has no [MASK], must have at least one", "fill-mask", encoder, "--prompt", "a cat")
    refused("must be at most 24 (model.max_len)", "fill-mask", encoder, "--prompt", "[MASK] " * 30)
    refused("top: got 0, must be at least 1", "fill-mask", encoder, "--prompt", "[MASK]", "--top", 0)
    refused("--file: cannot read", "generate", decoder, "--file", tmp_path / "none.txt")
    refused("step 7", "generate", decoder, "--prompt", "a", "--step", 7)


@fixtures
def test_errors_on_folders(tmp_path):
    for name in ("gpt2", "t5"):
        with pytest.raises(UserError, match=r"has no tokenizer of a known kind \(tokenizer\.json, for example\)"):
            runs.generate(FOLDER / name, ["w4"])
    with pytest.raises(UserError, match="is an encoder, must be a decoder or an encoder-decoder"):
        runs.generate(words_tokenizer(tmp_path / "bert", "bert"), ["w4"])
    with pytest.raises(UserError, match="is an encoder-decoder, must be a model that was trained to predict"):
        runs.fill_mask(words_tokenizer(tmp_path / "t5", "t5"), ["[MASK]"])
    with pytest.raises(UserError, match="is an encoder, must be a model that was trained to predict"):
        runs.fill_mask(words_tokenizer(tmp_path / "electra", "electra_discriminator"), ["[MASK]"])
    with pytest.raises(UserError, match=r"prompt 1: got token 299, must be in 0\.\.210"):
        runs.generate(words_tokenizer(tmp_path / "large", "gpt2", size=300), ["w299"], Sampling(4))
    with pytest.raises(UserError, match=r"prompt 2: got token 299, must be in 0\.\.210"):
        runs.fill_mask(words_tokenizer(tmp_path / "masks", "bert", size=300), ["w4 [MASK]", "w299 [MASK]"])
    with pytest.raises(UserError, match="--step: got 3"):
        runs.generate(tmp_path / "large", ["w4"], step=3)
    (tmp_path / "large/generation_config.json").write_text("{broken")
    with pytest.raises(UserError, match=r"generation_config\.json: not JSON"):
        runs.generate(tmp_path / "large", ["w4"])


@pytest.mark.full
def test_an_objective_without_a_language_model(tmp_path):
    config = {
        **RUN,
        "model": {"name": "vit", **TINY, "patch_size": 4},
        "objective": {"name": "classification"},
        "data": {"source": "builtin:digits"},
        "steps": 1,
    }
    run.train(config, tmp_path)
    with pytest.raises(UserError, match="its objective 'classification' trains no language model"):
        runs.generate(tmp_path, ["a"])
