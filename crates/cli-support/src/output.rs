//! Standard output and standard error. Their reader may close them. They may be terminals, so
//! control characters in text from peers and files are escaped.

use std::borrow::Cow;
use std::fmt::{Arguments, Write as _};
use std::io::{self, ErrorKind, Result, StdoutLock, Write};

/// Standard output. Control characters are escaped, in the form `\u001b`, which is valid in JSON,
/// too; bytes that are not UTF-8 are written as they are. If the reader has closed standard output,
/// as `head` does, the process ends without an error.
///
/// For programs that only print. Programs that must continue without a reader use [`print_line`].
#[must_use]
pub fn stdout() -> impl Write {
    EscapedStdout(io::stdout().lock())
}

/// Prints a line and ignores errors. For programs that continue without standard output.
pub fn print_line(line: Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    _ = writeln!(stdout, "{}", escape_control_characters(&line.to_string())).and_then(|()| stdout.flush());
}

/// Prints a line to standard error and ignores errors.
pub fn print_error(text: Arguments<'_>) {
    _ = writeln!(io::stderr(), "{}", escape_control_characters(&text.to_string()));
}

/// A peer's text as one line that is safe for a terminal: its first `max_chars` characters,
/// followed by `...` if there are more. White space becomes spaces, and control characters are
/// escaped.
#[must_use]
pub fn one_line(text: &str, max_chars: usize) -> String {
    let mut chars = text.chars();
    let shown: String = chars.by_ref().take(max_chars).map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    let rest = if chars.next().is_some() { "..." } else { "" };
    format!("{}{rest}", escape_control_characters(&shown))
}

/// Standard output with control characters escaped.
struct EscapedStdout(StdoutLock<'static>);

impl Write for EscapedStdout {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = match std::str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(escape_control_characters(text).as_bytes()).map(|()| bytes.len()),
            // File names need not be Unicode.
            Err(_) => self.0.write(bytes),
        };
        exit_if_closed(written)
    }

    fn flush(&mut self) -> Result<()> {
        exit_if_closed(self.0.flush())
    }
}

/// Ends the process without an error if the reader has closed standard output.
fn exit_if_closed<T>(result: Result<T>) -> Result<T> {
    result.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => std::process::exit(0),
        kind => std::io::Error::new(kind, format!("standard output: {error}")),
    })
}

/// The text with control characters escaped, except for tabs and line breaks. Also escapes
/// characters that change the direction of writing.
fn escape_control_characters(text: &str) -> Cow<'_, str> {
    if !text.contains(controls_terminal) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if controls_terminal(c) {
            // All control characters have four hex digits. Writing to a string does not fail.
            _ = write!(escaped, "\\u{:04x}", c as u32);
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

/// Whether a character may control a terminal.
fn controls_terminal(c: char) -> bool {
    let is_direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c != '\n' && c != '\t' && (c.is_control() || is_direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape_control_characters("a \u{1b}[31mred\u{1b}[0m host"), "a \\u001b[31mred\\u001b[0m host");
        assert_eq!(
            escape_control_characters("bell \u{7}, delete \u{7f}, C1 \u{9b}, back\r"),
            "bell \\u0007, delete \\u007f, C1 \\u009b, back\\u000d"
        );
        assert_eq!(escape_control_characters("\u{202e}gpj.exe"), "\\u202egpj.exe");
        assert_eq!(one_line("two\r\nlines, \u{1b}[31m", 99), "two  lines, \\u001b[31m");
        assert_eq!(one_line("Äffchen", 3), "Äff...");
        assert_eq!(one_line("Äff", 3), "Äff");
        let plain = "ein Äffchen 猿\t🐒\n";
        assert!(matches!(escape_control_characters(plain), Cow::Borrowed(text) if text == plain));
    }
}
