"""Compares exported captioners, loaded with transformers' AutoModel, with `worker caption`.

Usage: check_captioners.py FOLDER. captioners.py has written FOLDER.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import sys

import transformers
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/training.md"
# Scores are sums of some 15 log-probabilities, divided by their number.
TOLERANCE = 1e-5
# A model that ignores the images writes fewer distinct captions.
MIN_DISTINCT = 7


def snippet(document: pathlib.Path) -> str:
    """Returns the only Python block of a document."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", document.read_text(), flags=re.M | re.S)
    return block


def run_snippet(program: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(program, "snippet", "exec"), {})
    return output.getvalue().strip()


def load_model(folder: pathlib.Path, loader=AutoModel):
    """Loads a model. Fails if parameters are missing, unexpected or mismatched."""
    model, report = loader.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    problems = {problem: list(names) for problem, names in report.items() if names}
    assert not problems, f"{folder.name}: {problems}"
    return model


def check_captions(folder: pathlib.Path, model, images: list[dict]) -> int:
    """Compares captions and scores of all images with those of `worker caption`.

    Calls `generate` with explicit options, and with those of generation_config.json. Returns the
    number of distinct captions.
    """
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    pixels = processor(images=[Image.open(image["image"]) for image in images], return_tensors="pt").pixel_values
    expected = [image["captions"][0]["caption"] for image in images]
    settings = {"return_dict_in_generate": True, "output_scores": True}
    for options in ({"num_beams": 5, "max_length": 30}, {}):
        generated = model.generate(pixel_values=pixels, **options, **settings)
        captions = processor.batch_decode(generated.sequences, skip_special_tokens=True)
        assert captions == expected, f"{folder.name}, {options}: {captions}, but `worker caption` writes {expected}"
        for image, score in zip(images, generated.sequences_scores.tolist()):
            difference = abs(score - image["captions"][0]["score"])
            assert difference < TOLERANCE, f"{folder.name}, {image['image']}: scores differ by {difference}"
    tokens = model.generate(pixel_values=pixels, num_beams=1, max_length=4)
    assert tokens.shape[1] <= 4, "generate exceeds max_length"
    return len(set(expected))


def check_tokens(folder: pathlib.Path, model, images: list[dict]) -> None:
    """Checks that captions encode to tokens of the captioner's vocabulary, and decode unchanged."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    special_ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    size = config.decoder.vocab_size
    assert special_ids == [config.bos_token_id, config.eos_token_id, config.pad_token_id] == [size - 3, size - 2, size - 1]
    for caption in {caption["caption"] for image in images for caption in image["captions"]}:
        tokens = tokenizer(caption).input_ids
        assert max(tokens) < size and [tokens[0], tokens[-1]] == special_ids[:2], f"{folder.name}: {caption}: {tokens}"
        assert tokenizer.decode(tokens, skip_special_tokens=True) == caption


def check_clip_tokens(folder: pathlib.Path) -> int:
    """Checks CLIP's tokens of unusual texts. Returns the number of texts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    groups = json.loads((ROOT / "tests/golden/tokens.json").read_text())["groups"]
    texts = [(text, tokens) for group in groups.values() for text, tokens, *_ in group]
    for text, tokens in texts:
        generated = tokenizer(text, truncation=True, max_length=77).input_ids[1:-1]
        assert generated == tokens, f"{text!r} gives {generated}, not {tokens}"
    return len(texts)


def check_snippets(folder: pathlib.Path, images: list[dict]) -> None:
    """Checks that the snippet of docs/training.md and of the model card captions photo.jpg."""
    os.chdir(folder)
    photo = pathlib.Path("photo.jpg")
    photo.unlink(missing_ok=True)
    photo.symlink_to(images[0]["image"])
    program = snippet(DOCUMENT)
    assert program == snippet(folder / "my-dico/README.md"), "docs/training.md and the model card show different snippets"
    assert run_snippet(program) == str([images[0]["captions"][0]["caption"]]), run_snippet(program)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    for name, vocabulary in (("my-dico", 49409), ("my-corpus", None)):
        images = json.loads((folder / f"{name}.json").read_text())
        model = load_model(folder / name)
        size = model.config.decoder.vocab_size
        assert size == vocabulary if vocabulary else size < 1000, size
        distinct = check_captions(folder / name, model, images)
        assert distinct >= MIN_DISTINCT, f"{name}: {distinct} captions for {len(images)} images prove little"
        check_tokens(folder / name, model, images)
        load_model(folder / name, AutoModelForImageTextToText)
        print(f"transformers {transformers.__version__}: {name}: {len(images)} images, {distinct} captions, {size} tokens")
    images = json.loads((folder / "my-dico.json").read_text())
    texts = check_clip_tokens(folder / "my-dico")
    check_snippets(folder, images)
    print(f"transformers {transformers.__version__}: {texts} texts have CLIP's tokens; the documented snippet runs")


if __name__ == "__main__":
    main()
