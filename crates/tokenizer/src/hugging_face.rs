//! A vocabulary as `tokenizer.json` for Hugging Face's tokenizers library.

use serde_json::{Map, Value, json};

use super::byte_pairs::BytePairs;
use super::{CLIP_BEGIN_TOKEN, Vocabulary, WORD_PATTERN};

/// Begin, end and pad tokens in `tokenizer.json`. CLIP has the begin and end tokens, but no pad
/// token.
pub const SPECIAL_TOKENS: [&str; 3] = ["<|startoftext|>", "<|endoftext|>", "<|padding|>"];

impl Vocabulary {
    /// The content of `tokenizer.json`.
    ///
    /// Tokens have the same ids as in this vocabulary. Merging needs all of CLIP's tokens, so those
    /// outside this vocabulary follow after the pad token. A model with this vocabulary has no
    /// embeddings for them.
    #[must_use]
    pub fn tokenizer_json(&self) -> Value {
        let BytePairs { tokens, merges } = BytePairs::from_tokenizer(&self.bpe.tokenizer);
        let vocabulary_tokens = self.clip_ids.iter().map(|&token| tokens[usize::from(token)].as_str());
        let remaining = (0..CLIP_BEGIN_TOKEN).filter(|token| self.clip_ids.binary_search(token).is_err());
        let remaining = remaining.map(|token| tokens[usize::from(token)].as_str());
        let ids = vocabulary_tokens.chain(SPECIAL_TOKENS).chain(remaining).zip(0_u16..);
        let ids: Map<String, Value> = ids.map(|(token, id)| (token.to_owned(), id.into())).collect();
        let merges: Vec<[&str; 2]> =
            merges.iter().map(|pair| pair.map(|part| tokens[usize::from(part)].as_str())).collect();
        let [begin, end, _] = SPECIAL_TOKENS;
        let special_token = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let sequence = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": SPECIAL_TOKENS.map(|token| json!({
                "id": ids[token],
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
                    { "type": "Split", "pattern": { "Regex": WORD_PATTERN }, "behavior": "Removed", "invert": true },
                    byte_level,
                ],
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [special_token(begin), sequence("A"), special_token(end)],
                "pair": [special_token(begin), sequence("A"), special_token(end), sequence("B"), special_token(end)],
                "special_tokens": Map::from_iter([begin, end].map(|token| {
                    (token.to_owned(), json!({ "id": token, "ids": [ids[token]], "tokens": [token] }))
                })),
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    byte_level,
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
                "vocab": ids,
                "merges": merges,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_id(json: &Value, token: &str) -> i64 {
        json["model"]["vocab"][token].as_i64().unwrap()
    }

    #[test]
    fn tokens_have_the_ids_of_the_vocabulary() {
        for vocabulary in [Vocabulary::full(), Vocabulary::of_corpus(["a red circle", "two unicyclists"])] {
            let json = vocabulary.tokenizer_json();
            let special_ids = SPECIAL_TOKENS.map(|token| token_id(&json, token));
            assert_eq!(special_ids, [vocabulary.begin_token(), vocabulary.end_token(), vocabulary.pad_token()]);
            let added: Vec<_> = json["added_tokens"].as_array().unwrap().iter().map(|token| &token["id"]).collect();
            assert_eq!(added, special_ids.each_ref().map(|id| id));
            for word in ["a", "red", "circle"] {
                assert_eq!(vec![token_id(&json, &format!("{word}</w>"))], vocabulary.encode(word, 77)[1..2], "{word}");
            }
            let mut ids: Vec<_> = json["model"]["vocab"].as_object().unwrap().values().collect();
            ids.sort_by_key(|id| id.as_i64());
            assert!(ids.into_iter().eq(&(0..49_409).map(Value::from).collect::<Vec<_>>()));
        }
        let json = Vocabulary::of_corpus(["a red circle"]).tokenizer_json();
        assert_eq!(token_id(&json, "!"), 6, "the first of the remaining tokens follows the pad token");
    }
}
