//! METEOR's own normaliser, which `-norm` runs over captions that are tokenised already: it takes hyphenated words
//! apart, splits clitics at their apostrophe (`don't` and `do n't` both end in `'t`) and separates punctuation.
//!
//! The reference is a series of replacements, in each of which a match uses up the character before it and the one
//! after it: of `a-b-c`, only the first hyphen goes.

use std::collections::HashMap;

/// Words that keep their full stop.
pub(super) type Prefixes = HashMap<String, KeepsStop>;

/// When a word keeps its full stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeepsStop {
    Always,
    BeforeNumber,
}

/// The words of `caption`, in lower case.
pub(super) fn normalise(caption: &str, prefixes: &Prefixes) -> Vec<String> {
    // Between blanks, so that the first and the last character have neighbours, too.
    let mut text = separate_others(&format!(" {caption} "));
    text = between(text, not_digit, ',', not_digit, " , ");
    text = between(text, digit, ',', not_digit, " , ");
    text = between(text, not_digit, ',', digit, " , ");
    text = plain_punctuation(&text);
    text = between(text, |c| alphanumeric(c) || c == '.', '-', alphanumeric, " ");
    text = between(text, not_letter, '\'', not_letter, " ' ");
    text = between(text, |c| not_letter(c) && not_digit(c), '\'', letter, " ' ");
    text = between(text, letter, '\'', not_letter, " ' ");
    text = between(text, letter, '\'', letter, " '");
    text = between(text, digit, '\'', |c| c == 's', " '");
    split_stops(&text, prefixes)
        .to_lowercase()
        .split(separates)
        .filter(|word| !word.is_empty())
        .map(Into::into)
        .collect()
}

fn digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn not_digit(c: char) -> bool {
    !digit(c)
}

/// Latin, Cyrillic and phonetic letters, as the reference lists them. Greek, say, is not among them.
fn letter(c: char) -> bool {
    matches!(c, 'A'..='Z' | 'a'..='z' | 'À'..='Ö' | 'Ø'..='ö' | 'ø'..='\u{17e}' | '\u{400}'..='\u{527}'
        | '\u{a640}'..='\u{a66e}' | '\u{a67e}'..='\u{a697}' | '\u{1d00}'..='\u{1d7f}')
}

fn not_letter(c: char) -> bool {
    !letter(c)
}

fn alphanumeric(c: char) -> bool {
    digit(c) || letter(c)
}

/// White space that the reference's replacements know: less than Unicode's.
fn blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r')
}

/// What the reference takes to be between words in the end.
fn separates(c: char) -> bool {
    matches!(
        c,
        ' ' | '\t' | '\n' | '\u{c}' | '\r' | '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}'
    )
}

/// Puts spaces around characters that are neither letters nor digits and have no rule of their own, and around runs of
/// stops.
fn separate_others(text: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let stops = rest.len() - rest.trim_start_matches('.').len();
        let (taken, apart) = if stops > 1 {
            (stops, true)
        } else {
            (c.len_utf8(), !(alphanumeric(c) || blank(c) || matches!(c, '.' | '\'' | '`' | ',' | '-' | '‘' | '’')))
        };
        let (piece, after) = rest.split_at(taken);
        out.extend([if apart { " " } else { "" }, piece, if apart { " " } else { "" }]);
        rest = after;
    }
    out
}

/// Makes quotation marks and dashes plain; two single marks are a double one.
fn plain_punctuation(text: &str) -> String {
    let single = text.replace(['`', '‘', '’'], "'");
    single.replace("''", " \" ").replace(['“', '”'], " \" ").replace('–', "-").replace("--", "-")
}

/// Replaces `mark` by `by` where the characters around it are such.
fn between(text: String, before: impl Fn(char) -> bool, mark: char, after: impl Fn(char) -> bool, by: &str) -> String {
    if !text.contains(mark) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 8);
    // None where a replacement has used it up.
    let mut previous = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == mark
            && previous.is_some_and(&before)
            && let Some(next) = rest.next_if(|&next| after(next))
        {
            out.push_str(by);
            out.push(next);
            previous = None;
        } else {
            out.push(c);
            previous = Some(c);
        }
    }
    out
}

/// Separates the full stops from the ends of words, but for abbreviations and where a small letter follows, and takes
/// those inside words with letters out: `u.s.` becomes `us`.
fn split_stops(text: &str, prefixes: &Prefixes) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut words = text.split([' ', '\t', '\n', '\u{c}', '\r']).filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        match word.strip_suffix('.') {
            // A run of stops is one word.
            Some(bare) if !bare.trim_start_matches('.').is_empty() => {
                let next = words.peek().and_then(|next| next.chars().next());
                let before_number = || next.is_some_and(|c| c.is_ascii_digit());
                let before_small = next.is_some_and(|c| c.is_ascii_lowercase());
                if bare.contains('.') && bare.contains(letter) {
                    out.extend(word.split('.'));
                } else if before_small
                    || prefixes.get(bare).is_some_and(|&keeps| keeps == KeepsStop::Always || before_number())
                {
                    out.push_str(word);
                } else {
                    out.extend([bare, " ."]);
                }
            }
            _ => out.push_str(word),
        }
        out.push(' ');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_normalised_as_by_the_reference() {
        let prefixes = Prefixes::from([("vs".into(), KeepsStop::Always), ("pp".into(), KeepsStop::BeforeNumber)]);
        // Each printed by the reference.
        for (caption, expected) in [
            ("a-b-c t-shirt one-two-three-four", "a b-c t shirt one two three four"),
            (
                "do n't can't dogs' 'tis y'all 1990's 2's x'1 1'x",
                "do n 't can 't dogs ' ' tis y 'all 1990 's 2 's x ' 1 1'x",
            ),
            ("a,b,c 1,000 a,5 5,a ,a", "a , b,c 1,000 a , 5 5 , a , a"),
            ("wait ... what .. a..b .", "wait ... what .. a .. b ."),
            ("u.s. army vs. them vs. 3 and pp. 7 pp. x", "us army vs. them vs. 3 and pp. 7 pp. x"),
            ("pp. X vs. X etc. and etc. 5 no. 7 3.5. a.", "pp . x vs. x etc. and etc . 5 no . 7 3.5. a ."),
            ("``quote'' “x” ‘y’ '''", "\" quote \" \" x \" ' y ' \" '"),
            ("$5 50% a&b #1 a_b x@y", "$ 5 50 % a & b # 1 a _ b x @ y"),
            ("café naïve žena Ελλάδα 日本 привет", "café naïve žena ε λ λ ά δ α 日 本 привет"),
            ("– -- --- a–b a--b 5-5 -5 a- -a .-a", "- - -- a - b a b 5 5 -5 a- -a . a"),
            ("1\u{a0}1/2 a\u{2009}b", "1 1 / 2 a b"),
            ("", ""),
            (" ", ""),
            (".", "."),
        ] {
            assert_eq!(normalise(caption, &prefixes).join(" "), expected, "{caption:?}");
        }
    }
}
