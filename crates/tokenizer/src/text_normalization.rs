//! Text normalization as in OpenAI's `clip.tokenize` (`clip/simple_tokenizer.py`): ftfy repairs
//! broken encodings, HTML is unescaped twice, white space is collapsed, letters become lower-case.
//! Hugging Face's fast tokenizer repairs and unescapes nothing: it applies NFC and lower-cases.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Character references, as Python's `html.unescape` finds them.
static CHARACTER_REFERENCES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\x0c <&#;]{1,32};?)").expect("the pattern is valid")
});
/// Names that HTML also accepts without a semicolon.
const NAMES_WITHOUT_SEMICOLON: &str = " AElig AMP Aacute Acirc Agrave Aring Atilde Auml COPY Ccedil ETH Eacute Ecirc Egrave Euml GT \
    Iacute Icirc Igrave Iuml LT Ntilde Oacute Ocirc Ograve Oslash Otilde Ouml QUOT REG THORN Uacute Ucirc Ugrave Uuml Yacute \
    aacute acirc acute aelig agrave amp aring atilde auml brvbar ccedil cedil cent copy curren deg divide eacute ecirc egrave eth \
    euml frac12 frac14 frac34 gt iacute icirc iexcl igrave iquest iuml laquo lt macr micro middot nbsp not ntilde oacute ocirc \
    ograve ordf ordm oslash otilde ouml para plusmn pound quot raquo reg sect shy sup1 sup2 sup3 szlig thorn times uacute ucirc \
    ugrave uml uuml yacute yen yuml ";
/// The characters for code points 0x80 to 0x9F: those of Windows-1252 (HTML, "numeric character
/// reference end state").
const WINDOWS_1252: [char; 32] = [
    '\u{20ac}', '\u{81}', '\u{201a}', '\u{192}', '\u{201e}', '\u{2026}', '\u{2020}', '\u{2021}', '\u{2c6}', '\u{2030}',
    '\u{160}', '\u{2039}', '\u{152}', '\u{8d}', '\u{17d}', '\u{8f}', '\u{90}', '\u{2018}', '\u{2019}', '\u{201c}',
    '\u{201d}', '\u{2022}', '\u{2013}', '\u{2014}', '\u{2dc}', '\u{2122}', '\u{161}', '\u{203a}', '\u{153}', '\u{9d}',
    '\u{17e}', '\u{178}',
];

/// Normalizes a text for tokenization. Spaces of a text that needs no repair are not collapsed,
/// which does not change its words.
pub fn normalize(text: &str) -> String {
    if needs_only_lowercasing(text) {
        return text.to_ascii_lowercase();
    }
    // `html.unescape` drops invalid references, but `plsfix`, the port of ftfy, does not.
    let fixed = plsfix::fix_text(&remove_invalid_references(text), None);
    let unescaped = unescape(&unescape(&fixed));
    let words = unescaped.split(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Whether lower-casing alone gives the right words, as for nearly all captions.
fn needs_only_lowercasing(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'&')
}

/// Removes character references to code points that Python's `html.unescape` drops.
fn remove_invalid_references(text: &str) -> String {
    let replacement = |reference: &Captures<'_>| match reference[1].strip_prefix('#').map(parse_code_point) {
        Some(value) if is_invalid_code_point(value) => String::new(),
        _ => reference[0].to_owned(),
    };
    CHARACTER_REFERENCES.replace_all(text, replacement).into_owned()
}

/// Resolves character references as Python's `html.unescape` does.
fn unescape(text: &str) -> String {
    CHARACTER_REFERENCES.replace_all(text, |reference: &Captures<'_>| resolve_reference(&reference[1])).into_owned()
}

/// The text of an HTML character reference, given without its `&`; the reference itself if it is
/// unknown.
fn resolve_reference(reference: &str) -> String {
    if let Some(digits) = reference.strip_prefix('#') {
        return match parse_code_point(digits) {
            0 => '\u{fffd}'.into(),
            0x0d => '\r'.into(),
            value @ 0x80..=0x9f => WINDOWS_1252[value as usize - 0x80].into(),
            value if is_invalid_code_point(value) => String::new(),
            // Surrogates, and numbers beyond Unicode.
            value => char::from_u32(value).unwrap_or('\u{fffd}').into(),
        };
    }
    if let Some(characters) = reference.strip_suffix(';').and_then(named_entity) {
        return characters;
    }
    // The longest name that needs no semicolon; all have at least two letters.
    let ends = (2..=reference.len()).rev().filter(|end| reference.is_char_boundary(*end));
    for (name, rest) in ends.map(|end| reference.split_at(end)) {
        if NAMES_WITHOUT_SEMICOLON.contains(&format!(" {name} "))
            && let Some(characters) = named_entity(name)
        {
            return format!("{characters}{rest}");
        }
    }
    format!("&{reference}")
}

/// The code point of a numeric reference, given without its `&#`; `u32::MAX` if it is too large.
fn parse_code_point(digits: &str) -> u32 {
    let digits = digits.trim_end_matches(';');
    let value = match digits.strip_prefix(['x', 'X']) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    value.unwrap_or(u32::MAX)
}

/// Whether Python's `html.unescape` drops references to this code point, a control character or a
/// noncharacter. 0x80 to 0x9F, which have replacements, do not count.
fn is_invalid_code_point(value: u32) -> bool {
    matches!(value, 1..=8 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef)
        || (value <= 0x10_ffff && value & 0xfffe == 0xfffe)
}

/// The characters of the HTML entity `name`, which has no semicolon; none if it is unknown.
fn named_entity(name: &str) -> Option<String> {
    let reference = format!("&{name};");
    let decoded = html_escape::decode_html_entities(&reference);
    (decoded != reference).then(|| decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_repaired_unescaped_and_lowercased() {
        for (text, expected) in [
            ("A dog  on\ta Street", "a dog on a street"),
            ("schÃ¶n âœ” ï»¿", "schön ✔"),
            ("ＬＯＵＤ　ﬁne", "loud fine"),
            ("“it’s”", "\"it's\""),
            ("&amp;lt;b&amp;gt; caf&eacute;", "<b> café"),
            ("&notit; &AMPx &copy2026 &unknown;", "¬it; &x ©2026 &unknown;"),
            ("&#x80;&#65;&#1;&#64976;", "€a"),
            ("<b> &amp;", "<b> &"),
            ("", ""),
        ] {
            assert_eq!(normalize(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_fast_path_gives_the_same_words_as_the_full_normalization() {
        for text in ["A man (left) rides a 2-wheeled bike; it's RED!", "~tilde~ [x] {y} `z`", "a  b", "x<y>z"] {
            assert!(needs_only_lowercasing(text));
            let full = plsfix::fix_text(text, None).to_lowercase();
            assert_eq!(
                full.split_whitespace().collect::<Vec<_>>(),
                normalize(text).split_whitespace().collect::<Vec<_>>()
            );
        }
    }
}
