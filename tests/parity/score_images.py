"""Compares `worker score` with pacscore's code path, and `worker correlate` with scipy.

Usage: score_images.py WORKER WEIGHTS [DIR]. WEIGHTS is a pickle of ViT-B/32 with OpenAI's names,
the format of PAC-S. The images are crops of scikit-image's photographs, the captions random words. Both
sides use two threads.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy
import open_clip
import scipy.stats
import skimage.data
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

import clip_model

IMAGES, REFERENCES, BATCH = 100, 5, 64
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat", "retina", "hubble_deep_field")
WORDS = "a the two man woman dog cat with on under near red kite horse bus riding standing small large of street".split()
TOLERANCE = 1e-4


def write_images(folder: Path, generator: numpy.random.Generator) -> list[Path]:
    """Writes crops of photographs in COCO's sizes, and returns their paths."""
    photographs = []
    for name in PHOTOGRAPHS:
        try:
            photographs.append(getattr(skimage.data, name)())
        except Exception as error:  # Some photographs need a download, and there may be no network.
            print(f"skipping {name}: {type(error).__name__}")
    paths = []
    for number in range(IMAGES):
        pixels = photographs[number % len(photographs)][..., :3]
        side = int(generator.integers(200, min(pixels.shape[:2])))
        top, left = (int(generator.integers(0, length - side + 1)) for length in pixels.shape[:2])
        image = Image.fromarray(pixels[top : top + side, left : left + side])
        paths.append(folder / f"{number:03}.jpg")
        image.resize((640, 480) if number % 3 else (480, 640)).save(paths[-1], quality=90)
    return paths


def random_caption(generator: numpy.random.Generator) -> str:
    return " ".join(generator.choice(WORDS, size=int(generator.integers(5, 14))))


def pacscore_scores(weights: Path, paths: list[Path], captions: list[str], references: list[list[str]]) -> dict:
    """Computes scores like pacscore's compute_metrics.py, without worker processes."""
    state = torch.load(weights)
    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    model.load_state_dict({name: value.float() for name, value in state.get("state_dict", state).items()})
    preprocess = Compose([
        Resize(224, interpolation=InterpolationMode.BICUBIC),
        CenterCrop(224),
        lambda image: image.convert("RGB"),
        ToTensor(),
        Normalize(*clip_model.OPENAI_NORMALIZATION),
    ])
    tokenize = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    started = time.monotonic()
    with torch.no_grad():

        def unit(rows: list[torch.Tensor]) -> numpy.ndarray:
            return clip_model.normalize(torch.cat(rows)).numpy()

        chunks = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
        pixels = (torch.stack([preprocess(Image.open(path)) for path in chunk]) for chunk in chunks)
        images = unit([model.encode_image(chunk) for chunk in pixels])

        def embed(texts: list[str]) -> numpy.ndarray:
            tokens = tokenize([f"A photo depicts {text}" for text in texts])
            return unit([model.encode_text(chunk) for chunk in tokens.split(256)])

        caption_embeddings, reference_embeddings = embed(captions), embed([text for image_references in references for text in image_references])
    cosines = (images * caption_embeddings).sum(axis=1)
    nearest = numpy.einsum("icd,id->ic", reference_embeddings.reshape(len(captions), REFERENCES, -1), caption_embeddings).max(axis=1)
    similarity = caption_embeddings @ images.T
    ranks = 1 + (similarity > similarity.diagonal()[:, None]).sum(axis=1)
    scores = {f"retrieval_r{k}": (ranks <= k).astype(float) for k in (1, 5, 10)}
    for name, factor in (("pac_s", 2.0), ("clip_s", 2.5)):
        scores[name] = factor * cosines.clip(0)
        scores[f"ref_{name}"] = 2 * scores[name] * nearest / (scores[name] + nearest)
    return {"seconds": time.monotonic() - started, "scores": scores}


def worker_scores(worker: str, weights: Path, folder: Path, name: str, *more: str) -> tuple[dict, float]:
    command = [worker, "score", "--references", folder / "references.json", "--candidates", folder / "captions.json"]
    command += ["--images", folder, "--evaluator", f"{name}={weights},family=openai", "--threads", "2", "--json", *more]
    started = time.monotonic()
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result["items"], time.monotonic() - started


def correlate(worker: str, weights: Path, folder: Path, references: list[list[str]], generator) -> None:
    """Compares Kendall's tau of `worker correlate` with scipy's, for ratings with many ties."""
    judgements = {}
    for number, image_references in enumerate(references):
        rated = [{"caption": random_caption(generator), "rating": float(generator.integers(1, 5))} for _ in range(3)]
        rated[0]["rating"] = float("nan") if number % 10 == 0 else rated[0]["rating"]
        judgements[str(number)] = {"image_path": f"images/{number:03}.jpg", "ground_truth": image_references, "human_judgement": rated}
    judgements_file = folder / "judgements.json"
    judgements_file.write_text(json.dumps(judgements))
    command = [worker, "correlate", "--judgements", judgements_file, "--images", folder, "--threads", "2", "--json"]
    command += ["--evaluator", f"pac_s={weights},family=openai"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["metrics"]
    # Scores of the same captions by `worker score`, one item per caption.
    rows = [(key, rated) for key, judgement in sorted(judgements.items()) for rated in judgement["human_judgement"]]
    rows = [(key, rated) for key, rated in rows if rated["rating"] == rated["rating"]]
    ids = [f"{int(key):03}.jpg#{number}" for number, (key, _) in enumerate(rows)]
    (folder / "rated.json").write_text(json.dumps({name: rated["caption"] for name, (_, rated) in zip(ids, rows)}))
    (folder / "rated_references.json").write_text(
        json.dumps({name: judgements[key]["ground_truth"] for name, (key, _) in zip(ids, rows)})
    )
    command = [worker, "score", "--references", folder / "rated_references.json", "--candidates", folder / "rated.json"]
    items = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True).stdout)["items"]
    ratings = [rated["rating"] for _, rated in rows]
    for name in ("bleu_1", "cider", "rouge_l"):
        scores = [items[name][image] for image in ids]
        for variant in "bc":
            expected = scipy.stats.kendalltau(scores, ratings, variant=variant)[0]
            difference = abs(found[name][f"tau_{variant}"] - expected)
            if difference > 1e-9:
                sys.exit(f"tau-{variant} of {name} is {found[name]}, scipy's {expected}")
    print(f"{len(rows)} judgements: tau-b and tau-c of three metrics are scipy's, of PAC-S {found['pac_s']}")


def main() -> None:
    worker, weights = sys.argv[1], Path(sys.argv[2])
    folder = Path(sys.argv[3] if len(sys.argv) > 3 else "target/parity/score_images")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    generator = numpy.random.default_rng(7)
    paths = write_images(folder, generator)
    ids = [path.stem for path in paths]
    captions = [random_caption(generator) for _ in ids]
    references = [[random_caption(generator) for _ in range(REFERENCES)] for _ in ids]
    (folder / "captions.json").write_text(json.dumps(dict(zip(ids, captions))))
    (folder / "references.json").write_text(json.dumps(dict(zip(ids, references))))
    theirs = pacscore_scores(weights, paths, captions, references)
    items, seconds = worker_scores(worker, weights, folder, "pac_s")
    items |= worker_scores(worker, weights, folder, "clip_s")[0]
    for name, expected in theirs["scores"].items():
        found = numpy.array([items[name][image] for image in ids])
        difference = float(abs(found - expected).max())
        print(f"{name}: scores differ by at most {difference:.1e}")
        if difference > TOLERANCE:
            sys.exit(f"{name} differs by {difference}, more than {TOLERANCE}")
    correlate(worker, weights, folder, references, generator)
    # Our time includes the start of the program and the text metrics; the peer's only the
    # computation.
    ratio = theirs["seconds"] / seconds
    print(f"{IMAGES} images, {REFERENCES} references each: ours {seconds:.2f} s, theirs {theirs['seconds']:.2f} s: {ratio:.2f} times")


if __name__ == "__main__":
    main()
