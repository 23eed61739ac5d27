//! A vocabulary as `tokenizer.json` for Hugging Face's tokenizers library.

use serde_json::{Map, Value, json};

use super::byte_pairs::BytePairs;
use super::{CLIP_BEGIN, Vocabulary, WORDS};

/// Begin, end and pad tokens in that file. The first two are CLIP's.
pub const SPECIAL: [&str; 3] = ["<|startoftext|>", "<|endoftext|>", "<|padding|>"];

impl Vocabulary {
    /// The content of `tokenizer.json`.
    ///
    /// Tokens have the same numbers as here. Merging needs all of CLIP's tokens, so those outside
    /// this vocabulary follow after the pad token. No model with this vocabulary has embeddings for
    /// them.
    #[must_use]
    pub fn tokenizer_json(&self) -> Value {
        let BytePairs { tokens, merges } = BytePairs::of(&self.bpe.merges);
        let own = self.tokens.iter().map(|&token| tokens[usize::from(token)].as_str());
        let lacking = (0..CLIP_BEGIN).filter(|token| self.tokens.binary_search(token).is_err());
        let lacking = lacking.map(|token| tokens[usize::from(token)].as_str());
        let numbered = own.chain(SPECIAL).chain(lacking).zip(0_u16..);
        let numbers: Map<String, Value> = numbered.map(|(token, number)| (token.to_owned(), number.into())).collect();
        let merges: Vec<[&str; 2]> =
            merges.iter().map(|pair| pair.map(|part| tokens[usize::from(part)].as_str())).collect();
        let [begin, end, _] = SPECIAL;
        let special = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": SPECIAL.map(|token| json!({
                "id": numbers[token],
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": true,
                "special": true,
            })),
            "normalizer": { "type": "Sequence", "normalizers": [{ "type": "NFC" }, { "type": "Lowercase" }] },
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
                    bytes,
                ],
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [special(begin), text("A"), special(end)],
                "pair": [special(begin), text("A"), special(end), text("B"), special(end)],
                "special_tokens": Map::from_iter([begin, end].map(|token| {
                    (token.to_owned(), json!({ "id": token, "ids": [numbers[token]], "tokens": [token] }))
                })),
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    bytes,
                    { "type": "Replace", "pattern": { "String": "</w>" }, "content": " " },
                    { "type": "Strip", "content": " ", "start": 1, "stop": 1 },
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": "</w>",
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": numbers,
                "merges": merges,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(json: &Value, token: &str) -> i64 {
        json["model"]["vocab"][token].as_i64().unwrap()
    }

    #[test]
    fn tokens_have_the_numbers_of_the_vocabulary() {
        for vocabulary in [Vocabulary::full(), Vocabulary::of_corpus(["a red circle", "two unicyclists"])] {
            let json = vocabulary.tokenizer_json();
            let specials = SPECIAL.map(|token| number(&json, token));
            assert_eq!(specials, [vocabulary.begin(), vocabulary.end(), vocabulary.pad()]);
            let added: Vec<_> = json["added_tokens"].as_array().unwrap().iter().map(|token| &token["id"]).collect();
            assert_eq!(added, specials.each_ref().map(|number| number));
            for word in ["a", "red", "circle"] {
                assert_eq!(vec![number(&json, &format!("{word}</w>"))], vocabulary.encode(word, 77)[1..2], "{word}");
            }
            let mut numbers: Vec<_> = json["model"]["vocab"].as_object().unwrap().values().collect();
            numbers.sort_by_key(|number| number.as_i64());
            assert!(numbers.into_iter().eq(&(0..49_409).map(Value::from).collect::<Vec<_>>()));
        }
        let json = Vocabulary::of_corpus(["a red circle"]).tokenizer_json();
        assert_eq!(number(&json, "!"), 6, "the first of the tokens that are lacking follows after the pad");
    }
}
