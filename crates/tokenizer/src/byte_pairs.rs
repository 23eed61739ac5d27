//! CLIP's tokens as strings, and the merges of its byte-pair encoding, for tokenizer files of other
//! programs.
//!
//! The crate for encoding does not export them, but they follow from its decoding: token 512 + i is
//! the result of merge i, and merges apply in order. So the merges before number i reduce the bytes
//! of token 512 + i to two tokens, and these two are merge i.

use std::collections::HashMap;

use instant_clip_tokenizer::{Token, Tokenizer};

use super::CLIP_BEGIN;

/// The number of single bytes. Each has a token, and another one for the end of a word.
const BYTES: u16 = 256;
/// The suffix of a word's last token in vocabulary files.
const WORD_END: &str = "</w>";
/// A token may begin or end inside a character, and the decoder replaces incomplete characters.
/// Between these bytes every token is complete: after the first byte of a character of two, three
/// or four bytes, and before the missing bytes of its own last character.
const BEFORE: [&[u8]; 4] = [b"", b"\xC3", b"\xE1", b"\xF1"];
const AFTER: [&[u8]; 7] = [b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xBF", b"\xBF\x80", b"\xBF\x80\x80"];

/// The tokens and merges of a byte-pair encoding.
pub struct BytePairs {
    /// CLIP's tokens without begin and end, in the alphabet of [`letters`], with [`WORD_END`] at
    /// the end of a word.
    pub tokens: Vec<String>,
    /// Merge i produces token 512 + i from these two.
    pub merges: Vec<[u16; 2]>,
}

impl BytePairs {
    /// Derives them from the crate's tokenizer.
    pub fn of(clip: &Tokenizer) -> Self {
        let letters = letters();
        let mut number = [0; BYTES as usize];
        let mut tokens = Vec::with_capacity(CLIP_BEGIN.into());
        for (token, byte) in (0..).zip(bytes_in_order()) {
            number[usize::from(byte)] = token;
            tokens.push(letters[usize::from(byte)].to_string());
        }
        tokens.extend_from_within(..);
        tokens[usize::from(BYTES)..].iter_mut().for_each(|token| token.push_str(WORD_END));

        let mut results = HashMap::with_capacity(CLIP_BEGIN.into());
        let mut merges = Vec::with_capacity(CLIP_BEGIN.into());
        for token in 2 * BYTES..CLIP_BEGIN {
            let (bytes, ends_word) = spell(clip, &number, token);
            let mut parts: Vec<u16> = bytes.iter().map(|&byte| number[usize::from(byte)]).collect();
            if let Some(last) = parts.last_mut().filter(|_| ends_word) {
                *last += BYTES;
            }
            reduce(&mut parts, &results);
            let &[first, second] = parts.as_slice() else {
                unreachable!("token {token} is no merge of two that come before it");
            };
            tokens.push(format!("{}{}", tokens[usize::from(first)], tokens[usize::from(second)]));
            results.insert((first, second), token);
            merges.push([first, second]);
        }
        Self { tokens, merges }
    }
}

/// Whether a byte is a printable character of Latin-1.
fn prints(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..)
}

/// Bytes in the order of their tokens: printable ones, then the others.
fn bytes_in_order() -> impl Iterator<Item = u8> {
    (0..=u8::MAX).filter(|&byte| prints(byte)).chain((0..=u8::MAX).filter(|&byte| !prints(byte)))
}

/// The character for each byte: printable ones stand for themselves, the others are U+0100 and
/// following.
fn letters() -> [char; BYTES as usize] {
    let mut letters = ['\0'; BYTES as usize];
    for byte in (0..=u8::MAX).filter(|&byte| prints(byte)) {
        letters[usize::from(byte)] = char::from(byte);
    }
    for (byte, letter) in (0..=u8::MAX).filter(|&byte| !prints(byte)).zip('\u{100}'..) {
        letters[usize::from(byte)] = letter;
    }
    letters
}

/// The bytes of a merged token, and whether it ends a word.
fn spell(clip: &Tokenizer, number: &[u16; BYTES as usize], token: u16) -> (Vec<u8>, bool) {
    let decode = |before: &[u8], after: &[u8]| {
        let byte = |&byte: &u8| number[usize::from(byte)];
        let around = before.iter().map(byte).chain([token]).chain(after.iter().map(byte));
        clip.decode(around.filter_map(|token| Token::from_u16(token, clip)))
    };
    let whole = BEFORE.iter().flat_map(|&before| AFTER.iter().map(move |&after| (before, after))).find_map(
        |(before, after)| {
            let text = decode(before, after);
            let is_whole = !text.contains(char::REPLACEMENT_CHARACTER);
            is_whole.then(|| text.as_bytes()[before.len()..text.len() - after.len()].to_vec())
        },
    );
    // The replacement character has its own token.
    let mut bytes = whole.unwrap_or_else(|| decode(b"", b"").into_bytes());
    // The decoder adds a space after words, and words contain none.
    let ends_word = bytes.pop_if(|last| *last == b' ').is_some();
    (bytes, ends_word)
}

/// Applies merges, the earliest first, until none applies.
fn reduce(parts: &mut Vec<u16>, results: &HashMap<(u16, u16), u16>) {
    loop {
        let pairs = parts.windows(2).enumerate();
        let found = pairs.filter_map(|(place, pair)| Some((*results.get(&(pair[0], pair[1]))?, place)));
        let Some((result, place)) = found.min() else { return };
        parts[place] = result;
        parts.remove(place + 1);
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_merges_are_those_that_openai_published() {
        let BytePairs { tokens, merges } = BytePairs::of(&Tokenizer::new());
        assert_eq!((tokens.len(), merges.len()), (49_406, 48_894));
        let lines = merges.iter().map(|pair| pair.map(|part| tokens[usize::from(part)].as_str()).join(" "));
        let lines = lines.collect::<Vec<_>>().join("\n");
        // The SHA-256 of lines 2 to 48,895 of bpe_simple_vocab_16e6.txt.
        let published = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a";
        assert_eq!(format!("{:x}", Sha256::digest(lines)), published);
    }
}
