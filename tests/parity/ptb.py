"""Expected tokens of captions from pycocoevalcap's tokeniser.

Writes ptb.json with the unusual strings of ptb.txt. With ``--captions FILE``, lines of a name, a
tab and a caption, writes captions.json instead, which must not be committed.

The tokeniser reads all captions as lines of one file, and in rare cases looks across line ends.
Here each caption is a separate file, so that neighbours do not matter.
"""

import argparse
import importlib.metadata
import json
import subprocess
import tempfile
from pathlib import Path

import pycocoevalcap.tokenizer.ptbtokenizer as reference

# One string per line.
UNUSUAL_CAPTIONS = Path(__file__).with_name("ptb.txt")


def tokenizer_output(captions: list[str]) -> list[str]:
    """Returns the tokeniser's output for each caption, from one run of Java."""
    jar = Path(reference.__file__).with_name(reference.STANFORD_CORENLP_3_4_1_JAR)
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(Path(folder, f"{number}.in"), Path(folder, f"{number}.out")) for number in range(len(captions))]
        for caption, (source, _) in zip(captions, pairs):
            source.write_text(caption + "\n", encoding="utf-8")
        listed = Path(folder, "pairs")
        listed.write_text("".join(f"{source}\t{result}\n" for source, result in pairs))
        options = ["-preserveLines", "-lowerCase", "-ioFileList", str(listed)]
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", *options]
        subprocess.run(command, check=True, capture_output=True)
        return [result.read_text(encoding="utf-8") for _, result in pairs]


def without_punctuation(line: str) -> str:
    """Removes punctuation, like pycocoevalcap."""
    return " ".join(word for word in line.rstrip("\n").split(" ") if word and word not in reference.PUNCTUATIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that the results are written to")
    parser.add_argument("--captions", type=Path, help="lines of a name, a tab and a caption")
    arguments = parser.parse_args()
    if arguments.captions:
        lines = arguments.captions.read_text(encoding="utf-8").splitlines()
        captions, name = [line.split("\t", 1)[1] for line in lines], "captions.json"
    else:
        captions, name = UNUSUAL_CAPTIONS.read_text(encoding="utf-8").rstrip("\n").split("\n"), "ptb.json"
    cases = [[caption, without_punctuation(line)] for caption, line in zip(captions, tokenizer_output(captions))]
    versions = {"pycocoevalcap": importlib.metadata.version("pycocoevalcap"), "corenlp": "3.4.1"}
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    text = f'{{"versions":{json.dumps(versions)},"captions":[\n{lines}\n]}}\n'
    (arguments.out / name).write_text(text, encoding="utf-8")
    print(f"{len(cases)} captions")


if __name__ == "__main__":
    main()
