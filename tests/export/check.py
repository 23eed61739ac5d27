"""Loads the exported captioners with transformers' AutoModel and compares their words with those of
`worker caption`.

Usage: check.py FOLDER, which captioners.py has filled.
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
# Fewer distinct captions would also come of a model that sees hardly anything of an image.
MIN_DISTINCT = 7


def snippet(document: pathlib.Path) -> str:
    """The Python block of a document."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", document.read_text(), flags=re.M | re.S)
    return block


def printed(program: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(program, "snippet", "exec"), {})
    return said.getvalue().strip()


def loaded(folder: pathlib.Path, loader=AutoModel):
    """A model all of whose parameters are in the folder, which has no others."""
    model, report = loader.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    wrong = {problem: list(names) for problem, names in report.items() if names}
    assert not wrong, f"{folder.name}: {wrong}"
    return model


def check_words(folder: pathlib.Path, model, images: list[dict]) -> int:
    """Captions all images at once, as `generate` is told and as generation_config.json says. Returns
    the number of distinct captions."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    pixels = processor(images=[Image.open(image["image"]) for image in images], return_tensors="pt").pixel_values
    expected = [image["captions"][0]["caption"] for image in images]
    settings = {"return_dict_in_generate": True, "output_scores": True}
    for told in ({"num_beams": 5, "max_length": 30}, {}):
        found = model.generate(pixel_values=pixels, **told, **settings)
        words = processor.batch_decode(found.sequences, skip_special_tokens=True)
        assert words == expected, f"{folder.name}, {told}: {words}, but `worker caption` writes {expected}"
        for image, score in zip(images, found.sequences_scores.tolist()):
            far = abs(score - image["captions"][0]["score"])
            assert far < TOLERANCE, f"{folder.name}, {image['image']}: scores differ by {far}"
    tokens = model.generate(pixel_values=pixels, num_beams=1, max_length=4)
    assert tokens.shape[1] <= 4, "max_length is not kept"
    return len(set(expected))


def check_tokens(folder: pathlib.Path, model, images: list[dict]) -> None:
    """The tokenizer encodes captions as tokens that the captioner knows, and decodes these to the
    same words."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    size = config.decoder.vocab_size
    assert special == [config.bos_token_id, config.eos_token_id, config.pad_token_id] == [size - 3, size - 2, size - 1]
    for caption in {caption["caption"] for image in images for caption in image["captions"]}:
        tokens = tokenizer(caption).input_ids
        assert max(tokens) < size and [tokens[0], tokens[-1]] == special[:2], f"{folder.name}: {caption}: {tokens}"
        assert tokenizer.decode(tokens, skip_special_tokens=True) == caption


def check_clips_tokens(folder: pathlib.Path) -> int:
    """CLIP's tokens of odd texts. Returns how many there are."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    groups = json.loads((ROOT / "tests/golden/tokens.json").read_text())["groups"]
    texts = [(text, tokens) for group in groups.values() for text, tokens, *_ in group]
    for text, tokens in texts:
        found = tokenizer(text, truncation=True, max_length=77).input_ids[1:-1]
        assert found == tokens, f"{text!r} gives {found}, not {tokens}"
    return len(texts)


def check_snippets(folder: pathlib.Path, images: list[dict]) -> None:
    """The snippet of docs/training.md, and the model card's, print the caption of photo.jpg."""
    os.chdir(folder)
    photo = pathlib.Path("photo.jpg")
    photo.unlink(missing_ok=True)
    photo.symlink_to(images[0]["image"])
    program = snippet(DOCUMENT)
    assert program == snippet(folder / "my-dico/README.md"), "docs/training.md and the model card show different snippets"
    assert printed(program) == str([images[0]["captions"][0]["caption"]]), printed(program)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    for name, vocabulary in (("my-dico", 49409), ("my-corpus", None)):
        images = json.loads((folder / f"{name}.json").read_text())
        model = loaded(folder / name)
        size = model.config.decoder.vocab_size
        assert size == vocabulary if vocabulary else size < 1000, size
        distinct = check_words(folder / name, model, images)
        assert distinct >= MIN_DISTINCT, f"{name}: {distinct} captions for {len(images)} images prove little"
        check_tokens(folder / name, model, images)
        loaded(folder / name, AutoModelForImageTextToText)
        print(f"transformers {transformers.__version__}: {name}: {len(images)} images, {distinct} captions, {size} tokens")
    images = json.loads((folder / "my-dico.json").read_text())
    texts = check_clips_tokens(folder / "my-dico")
    check_snippets(folder, images)
    print(f"transformers {transformers.__version__}: {texts} texts have CLIP's tokens; the documented snippet runs")


if __name__ == "__main__":
    main()
