//! CLIP's tokens as strings, and the merges of its byte-pair encoding, for `tokenizer.json`.
//!
//! The crate `instant_clip_tokenizer` does not export them, but they follow from its decoder: token
//! 512 + i is the result of merge i, and merges apply in order. So the merges before merge i reduce
//! the bytes of token 512 + i to two tokens, and these two are merge i.

use std::collections::HashMap;

use instant_clip_tokenizer::{Token, Tokenizer};

use super::CLIP_BEGIN_TOKEN;

/// The number of single bytes. Each has two tokens: one inside a word, and one at the end of a
/// word.
const BYTE_COUNT: u16 = 256;
/// The suffix of a word's last token in vocabulary files.
const WORD_END: &str = "</w>";
/// A token may begin or end inside a UTF-8 character, and the decoder replaces incomplete
/// characters. With one of these prefixes and one of these suffixes every token decodes completely:
/// a prefix is the first byte of a character of two, three or four bytes, a suffix the missing
/// bytes of the token's last character.
const PREFIXES: [&[u8]; 4] = [b"", b"\xC3", b"\xE1", b"\xF1"];
const SUFFIXES: [&[u8]; 7] = [b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xBF", b"\xBF\x80", b"\xBF\x80\x80"];

/// The tokens and merges of a byte-pair encoding.
pub struct BytePairs {
    /// CLIP's tokens without begin and end, in the alphabet of [`byte_characters`], with
    /// [`WORD_END`] at the end of a word.
    pub tokens: Vec<String>,
    /// Merge i produces token 512 + i from these two.
    pub merges: Vec<[u16; 2]>,
}

impl BytePairs {
    /// Derives tokens and merges from the decoder of `clip`.
    pub fn from_tokenizer(clip: &Tokenizer) -> Self {
        let byte_characters = byte_characters();
        let mut byte_tokens = [0; BYTE_COUNT as usize];
        let mut tokens = Vec::with_capacity(CLIP_BEGIN_TOKEN.into());
        for (token, byte) in (0..).zip(bytes_in_token_order()) {
            byte_tokens[usize::from(byte)] = token;
            tokens.push(byte_characters[usize::from(byte)].to_string());
        }
        tokens.extend_from_within(..);
        tokens[usize::from(BYTE_COUNT)..].iter_mut().for_each(|token| token.push_str(WORD_END));

        let mut merge_results = HashMap::with_capacity(CLIP_BEGIN_TOKEN.into());
        let mut merges = Vec::with_capacity(CLIP_BEGIN_TOKEN.into());
        for token in 2 * BYTE_COUNT..CLIP_BEGIN_TOKEN {
            let (bytes, ends_word) = decode_token(clip, &byte_tokens, token);
            let mut parts: Vec<u16> = bytes.iter().map(|&byte| byte_tokens[usize::from(byte)]).collect();
            if let Some(last) = parts.last_mut().filter(|_| ends_word) {
                *last += BYTE_COUNT;
            }
            apply_merges(&mut parts, &merge_results);
            let &[first, second] = parts.as_slice() else {
                unreachable!("token {token} is not the merge of two tokens with smaller ids");
            };
            tokens.push(format!("{}{}", tokens[usize::from(first)], tokens[usize::from(second)]));
            merge_results.insert((first, second), token);
            merges.push([first, second]);
        }
        Self { tokens, merges }
    }
}

/// Whether a byte is a printable character of Latin-1, other than a space or the soft hyphen.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..)
}

/// Bytes in the order of their tokens: printable ones, then the others.
fn bytes_in_token_order() -> impl Iterator<Item = u8> {
    (0..=u8::MAX).filter(|&byte| is_printable(byte)).chain((0..=u8::MAX).filter(|&byte| !is_printable(byte)))
}

/// The character that represents each byte: a printable byte is its own Latin-1 character, the
/// others are U+0100 and following.
fn byte_characters() -> [char; BYTE_COUNT as usize] {
    let mut characters = ['\0'; BYTE_COUNT as usize];
    for byte in (0..=u8::MAX).filter(|&byte| is_printable(byte)) {
        characters[usize::from(byte)] = char::from(byte);
    }
    for (byte, character) in (0..=u8::MAX).filter(|&byte| !is_printable(byte)).zip('\u{100}'..) {
        characters[usize::from(byte)] = character;
    }
    characters
}

/// The bytes of a merged token, and whether it ends a word.
fn decode_token(clip: &Tokenizer, byte_tokens: &[u16; BYTE_COUNT as usize], token: u16) -> (Vec<u8>, bool) {
    let decode = |prefix: &[u8], suffix: &[u8]| {
        let byte_token = |&byte: &u8| byte_tokens[usize::from(byte)];
        let tokens = prefix.iter().map(byte_token).chain([token]).chain(suffix.iter().map(byte_token));
        clip.decode(tokens.filter_map(|token| Token::from_u16(token, clip)))
    };
    let mut contexts = PREFIXES.iter().flat_map(|&prefix| SUFFIXES.iter().map(move |&suffix| (prefix, suffix)));
    let complete = contexts.find_map(|(prefix, suffix)| {
        let text = decode(prefix, suffix);
        let is_complete = !text.contains(char::REPLACEMENT_CHARACTER);
        is_complete.then(|| text.as_bytes()[prefix.len()..text.len() - suffix.len()].to_vec())
    });
    // One token is the replacement character itself.
    let mut bytes = complete.unwrap_or_else(|| decode(b"", b"").into_bytes());
    // The decoder adds a space after a word, and words contain no spaces.
    let ends_word = bytes.pop_if(|last| *last == b' ').is_some();
    (bytes, ends_word)
}

/// Merges pairs in `tokens` until no merge applies; of several merges that apply, the one with the
/// smallest result is first.
fn apply_merges(tokens: &mut Vec<u16>, merge_results: &HashMap<(u16, u16), u16>) {
    loop {
        let pairs = tokens.windows(2).enumerate();
        let applicable =
            pairs.filter_map(|(position, pair)| Some((*merge_results.get(&(pair[0], pair[1]))?, position)));
        let Some((result, position)) = applicable.min() else { return };
        tokens[position] = result;
        tokens.remove(position + 1);
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn merges_equal_those_that_openai_published() {
        let BytePairs { tokens, merges } = BytePairs::from_tokenizer(&Tokenizer::new());
        assert_eq!((tokens.len(), merges.len()), (49_406, 48_894));
        let lines = merges.iter().map(|pair| pair.map(|part| tokens[usize::from(part)].as_str()).join(" "));
        let lines = lines.collect::<Vec<_>>().join("\n");
        // The SHA-256 of lines 2 to 48,895 of bpe_simple_vocab_16e6.txt.
        let published = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a";
        assert_eq!(format!("{:x}", Sha256::digest(lines)), published);
    }
}
