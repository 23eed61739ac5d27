"""Expected tokens of unusual and ordinary strings from CLIP's tokenizers.

Writes tokens.json with the tokens of transformers' CLIPTokenizerFast, which the published code uses
through AutoTokenizer. Where they differ, the file also has the tokens of the slow CLIPTokenizer,
which first repairs texts with ftfy, and of OpenAI's ``clip.tokenize`` (in open_clip), which also
unescapes HTML.
"""

import gzip
import html
import importlib.resources
import json
import random
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import ftfy
import regex
import tokenizers
from open_clip.tokenizer import SimpleTokenizer
from transformers import AddedToken, CLIPTokenizer, CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

import common

SEED = 20240814
CONTEXT_LENGTH = 77
MERGES = 49152 - 256 - 2
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
COUNTS = {"golden": 330, "full": 3000}

WORDS = (
    "a the of on in with two three man woman child dog cat horse zebra giraffe train bus bicycle skateboard surfboard "
    "riding standing sitting holding eating playing next to near under over street beach kitchen table pizza sandwich "
    "umbrella traffic light fire hydrant stop sign bench bird elephant bear backpack frisbee snowboard tennis racket "
    "red blue green yellow black white large small old young group of people person wearing hat shirt looking at "
    "camera photo picture view close-up black-and-white antique façade café naïve jalapeño piñata São Tomé"
).split()
SCRIPTS = (
    (0x00C0, 0x024F),
    (0x0370, 0x03FF),
    (0x0400, 0x04FF),
    (0x0531, 0x0587),
    (0x05D0, 0x05EA),
    (0x0620, 0x064A),
    (0x0905, 0x0939),
    (0x0E01, 0x0E30),
    (0x10A0, 0x10FF),
    (0x1100, 0x11FF),
    (0x13A0, 0x13F5),
    (0x1E00, 0x1EFF),
    (0x3041, 0x3096),
    (0x30A1, 0x30FA),
    (0x4E00, 0x9FA0),
    (0xAC00, 0xD7A3),
    (0x10400, 0x1044F),
    (0x1D400, 0x1D7FF),
)
MARKS = "\u0301\u0300\u0308\u0303\u0327\u0323\u0304\u030a\u20dd\u0345\u064b\u093c\u3099"
EMOJI = tuple("😀 👩‍👩‍👧‍👦 👨🏽‍🚀 🏳️‍🌈 🇮🇹 🇺🇳 ❤️ ❤ ☺️ 1️⃣ 🧑‍🎄 🐈‍⬛ 👍🏿 🫠 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ⚽ 🤷🏻‍♀️".split())
SPACES = (" ", "  ", "\t", "\n", "\r\n", *"\u00a0\u200b\u2009\u3000\u2028\u202f\ufeff\u0085\x0b\x1c")
DIGITS = "0123456789²³½¼٣٤५६๓Ⅳⅷ①⑳０９𝟘𝟡㉈百"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…—–‘’“”«»¿¡§¶•™©®°±×÷€£¥₹♪♥★→"
CONTRACTIONS = tuple(
    (
        "it's IT'S don't DON'T we'll WE'LL I'm i'M they've they'RE he'd HE'D 's ''s rock'n'roll o'clock it’s "
        "don’t y'all'd've 't'is 'LLama 'reed x'ſ"
    ).split()
)
CASES = tuple("İstanbul I ı ß ẞ ΑΣ ΣΑΣ ὈΔΥΣΣΕΎΣ ǅ ǆ ŉ ﬁ ﬀ ﬃ Å K Ω Ａｂｃ ſ ΐ Ԧ Ꭰ ꭰ 𐐀 ᾈ Ǆ Ⓐ ㎏ ℌ 𝕳".split())
ENTITIES = tuple("&amp; &lt; &gt; &quot; &#39; &nbsp; &eacute; &#x1F600; &unknown; &amp;amp; &AMP &".split())
SPECIALS = tuple(
    f"{BEGIN} {END} <start_of_text> <end_of_text> <|ENDOFTEXT|> <|endoftext| <|pad|> </w> <s> endoftext".split()
)
MOJIBAKE = ("Ã©", "â€™", "â€œhiâ€\x9d", "Â£", "ï»¿", "schÃ¶n", "âœ”", "ð\x9f\x98\x80", "\x92", "‘a’")

CONTROLS = (*range(32), *range(127, 160), 0xAD, 0x200D, 0x200E, 0xFFFD, 0xFFFF)

TextGenerator = Callable[[random.Random], str]


def random_character(rng: random.Random, ranges: tuple[tuple[int, int], ...]) -> str:
    """Returns a random assigned character from one of the ranges."""
    while True:
        character = chr(rng.randint(*rng.choice(ranges)))
        if unicodedata.category(character) not in ("Cn", "Cs", "Co"):
            return character


def caption(rng: random.Random) -> str:
    text = " ".join(rng.choices(WORDS, k=rng.randint(3, 12)))
    text = rng.choice((str, str.capitalize, str.upper, str.title))(text)
    return text + rng.choice(("", ".", " .", "!", ",", "  "))


def scripts(rng: random.Random) -> str:
    """Returns words, each in one script."""
    words = []
    for _ in range(rng.randint(1, 3)):
        script = (rng.choice(SCRIPTS),)
        words.append("".join(random_character(rng, script) for _ in range(rng.randint(1, 4))))
    return " ".join(words)


def any_characters(rng: random.Random) -> str:
    """Returns characters of the first two Unicode planes."""
    return "".join(random_character(rng, ((0x20, 0x1FFFF),)) for _ in range(rng.randint(1, 4)))


def combining(rng: random.Random) -> str:
    count = rng.randint(1, 4)
    letters = [rng.choice("aeiouncAEIOUNCéüñक가") + rng.choice(MARKS) * rng.randint(0, 2) for _ in range(count)]
    text = rng.choice(("", rng.choice(MARKS))) + "".join(letters)
    return unicodedata.normalize(rng.choice(("NFC", "NFD", "NFKC", "NFKD")), text) if rng.random() < 0.7 else text


def normal_forms(rng: random.Random) -> str:
    return unicodedata.normalize(rng.choice(("NFC", "NFD")), scripts(rng))


def mixed(parts: tuple[str, ...] | str, joiners: tuple[str, ...] = ("", " ")) -> TextGenerator:
    """Returns a generator of texts of a few parts, some joined with words."""

    def text(rng: random.Random) -> str:
        chosen = [rng.choice(parts) if rng.random() < 0.7 else rng.choice(WORDS) for _ in range(rng.randint(1, 5))]
        joined = chosen[0]
        for part in chosen[1:]:
            joined += rng.choice(joiners) + part
        return joined

    return text


def spaces(rng: random.Random) -> str:
    def gap() -> str:
        return "".join(rng.choices(SPACES, k=rng.randint(0, 3)))

    return gap() + "".join(rng.choice(WORDS) + gap() for _ in range(rng.randint(0, 4)))


def controls(rng: random.Random) -> str:
    characters = [chr(rng.choice(CONTROLS)) for _ in range(rng.randint(1, 3))]
    return rng.choice(WORDS) + "".join(rng.choice((c, c + rng.choice(WORDS))) for c in characters)


def repeats(rng: random.Random) -> str:
    return rng.choice("a!.0é世😀 -_") * rng.randint(2, 12) + rng.choice(("", rng.choice(WORDS)))


# Parts of texts that clip.tokenize repairs.
BROKEN = (
    *("Ã©", "â€™", "â€œhiâ€\x9d", "Â£", "ï»¿", "schÃ¶n", "âœ”", "ð\x9f\x98\x80", "\x92", "‘a’", "Ã¼ber", "naÃ¯ve", "â€“", "â‚¬"),
    *("donâ€™t", "Ã\xa0 la", "l’humanitÃ©", "ﬁ", "ﬂ", "ﬃ", "ﬀ", "ĳ", "ŉ", "ǆ", "ＬＯＵＤ", "ｆｕｌｌ", "１２３", "\u3000", "！"),
    *(f"&{name}" for name in list(html.entities.html5)[::29]),
    *(f"&#{number};" for number in (0, 7, 65, 128, 150, 159, 55296, 64976, 65534, 1114112, 9999999999, 128512)),
    *("&#x80;", "&#X41", "&#38;amp;", "&notit;", "&AMPx", "&ltdog", "&copy2026", "&amp;lt;b&amp;gt;", "x'ſ", "DON'T", "<b>"),
)
CLEANED_TEXTS = 500


def cleaned_texts() -> list[str]:
    """Returns distinct texts of parts that clip.tokenize repairs, some joined with words."""
    rng = random.Random(SEED + 1)
    texts: dict[str, None] = {}
    while len(texts) < CLEANED_TEXTS:
        parts = [rng.choice(BROKEN) if rng.random() < 0.6 else rng.choice(WORDS) for _ in range(rng.randint(1, 6))]
        texts[rng.choice((" ", "", "  ", "\t")).join(parts)] = None
    return list(texts)


GROUPS: dict[str, TextGenerator] = {
    "caption": caption,
    "scripts": scripts,
    "anything": any_characters,
    "combining": combining,
    "normal forms": normal_forms,
    "emoji": mixed(EMOJI),
    "spaces": spaces,
    "contractions": mixed(CONTRACTIONS),
    "digits": mixed(DIGITS),
    "punctuation": mixed(PUNCTUATION),
    "controls": controls,
    "entities": mixed(ENTITIES),
    "specials": mixed(SPECIALS),
    "cases": mixed(CASES),
    "mojibake": mixed(MOJIBAKE),
    "repeats": repeats,
}


def long_texts(rng: random.Random) -> list[str]:
    """Returns texts around and beyond the context length, in words, characters or bytes."""
    exact = ["dog " * count for count in (74, 75, 76, 77, 200)]
    return exact + ["x" * 400, "世界" * 60, "😀" * 40, "a " * 5000, ".," * 90, " ".join(rng.choices(WORDS, k=120))]


def plain_texts() -> list[str]:
    """Returns the empty string, spaces, and each character below U+0250."""
    return ["", " ", "\n", *(chr(code) for code in range(0x250))]


def strings(size: str) -> Iterator[tuple[str, str]]:
    """Yields (group, text); texts are distinct."""
    rng = random.Random(SEED)
    distinct: set[str] = set()
    fixed = {"plain": plain_texts(), "long": long_texts(rng)}
    random_texts = {name: [text(rng) for _ in range(COUNTS[size])] for name, text in GROUPS.items()}
    for name, texts in (fixed | random_texts).items():
        for text in texts:
            if text not in distinct:
                distinct.add(text)
                yield name, text


def tokenizer_files(folder: Path) -> tuple[str, str]:
    """Writes vocab.json and merges.txt from open_clip's merges, with OpenAI's token ids."""
    resource = importlib.resources.files("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(resource.read_bytes()).decode().split("\n")
    merges = lines[1 : MERGES + 1]
    letters = list(bytes_to_unicode().values())
    merged = ["".join(merge.split()) for merge in merges]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *merged, BEGIN, END]
    vocabulary, ranks = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    ranks.write_text("\n".join([lines[0], *merges]) + "\n")
    return str(vocabulary), str(ranks)


def load_tokenizers() -> tuple[CLIPTokenizerFast, CLIPTokenizer]:
    """Loads the tokenizers with the settings of openai/clip-vit-large-patch14."""
    texts = {"unk_token": END, "bos_token": BEGIN, "eos_token": END}
    special = {name: AddedToken(text, normalized=True) for name, text in texts.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = tokenizer_files(Path(folder))
        settings = special | {"pad_token": END, "model_max_length": CONTEXT_LENGTH}
        return CLIPTokenizerFast(*files, **settings), CLIPTokenizer(*files, **settings)


def openai_tokenizer() -> SimpleTokenizer:
    """Returns open_clip's tokenizer with OpenAI's names of the begin and end token."""
    tokenizer = SimpleTokenizer()
    pattern = tokenizer.pat.pattern
    for open_clip_token, openai_token in (("<start_of_text>", BEGIN), ("<end_of_text>", END)):
        tokenizer.encoder[openai_token] = tokenizer.encoder.pop(open_clip_token)
        tokenizer.cache[openai_token] = openai_token
        pattern = pattern.replace(open_clip_token, regex.escape(openai_token))
    tokenizer.pat = regex.compile(pattern, regex.IGNORECASE)
    return tokenizer


def encode(tokenizer: CLIPTokenizerFast | CLIPTokenizer, text: str) -> list[int]:
    """Returns the tokens between begin and end, at most 75."""
    return tokenizer(text, truncation=True, max_length=CONTEXT_LENGTH)["input_ids"][1:-1]


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    fast, slow = load_tokenizers()
    openais = openai_tokenizer()

    def clip_tokenize(text: str) -> list[int]:
        return openais.encode(text)[: CONTEXT_LENGTH - 2]

    groups: dict[str, list[list]] = {}
    differing = 0
    for group, text in strings(arguments.size):
        fast_tokens, slow_tokens = encode(fast, text), encode(slow, text)
        differing += fast_tokens != slow_tokens
        cleaned = clip_tokenize(text)
        entry = [text, fast_tokens] if fast_tokens == slow_tokens else [text, fast_tokens, slow_tokens]
        if cleaned != fast_tokens:
            entry = [text, fast_tokens, slow_tokens if fast_tokens != slow_tokens else None, cleaned]
        groups.setdefault(group, []).append(entry)
    versions = common.versions() | {"tokenizers": tokenizers.__version__, "ftfy": ftfy.__version__}
    common.write_json(arguments.out / "tokens.json", {
        "versions": versions,
        "groups": groups,
        "cleaned": [[text, clip_tokenize(text)] for text in cleaned_texts()],
    })
    total = sum(map(len, groups.values()))
    print(f"{total} strings; the slow tokenizer differs in {differing}")
    for name, entries in groups.items():
        print(f"  {name}: {len(entries)}, {sum(len(entry) > 2 for entry in entries)} differ")


if __name__ == "__main__":
    main()
