//! Standard output and standard error. Readers may close them, and they may be terminals: text from
//! peers and files must not control the terminal.

use std::borrow::Cow;
use std::fmt::{Arguments, Write as _};
use std::io::{ErrorKind, Result, StdoutLock, Write, stderr, stdout};

/// Standard output. Control characters are written as `\u001b`, which is valid in JSON, too. If its
/// reader has closed it, as `head` does, the process ends without an error.
///
/// Not for processes that do more than printing: see [`tell`].
#[must_use]
pub fn out() -> impl Write {
    Output(stdout().lock())
}

/// Prints a line, and ignores failure. For processes that continue in any case.
pub fn tell(line: Arguments<'_>) {
    let mut out = stdout().lock();
    _ = writeln!(out, "{}", printable(&line.to_string())).and_then(|()| out.flush());
}

/// Prints to standard error, and ignores failure.
pub fn complain(text: Arguments<'_>) {
    _ = writeln!(stderr(), "{}", printable(&text.to_string()));
}

/// A peer's text as one line that is safe for a terminal: its first `max_chars` characters, with
/// control characters escaped.
#[must_use]
pub fn one_line(text: &str, max_chars: usize) -> String {
    let mut chars = text.chars();
    let shown: String = chars.by_ref().take(max_chars).map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    let rest = if chars.next().is_some() { "..." } else { "" };
    format!("{}{rest}", printable(&shown))
}

struct Output(StdoutLock<'static>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = match std::str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(printable(text).as_bytes()).map(|()| bytes.len()),
            // The name of a file need not be Unicode.
            Err(_) => self.0.write(bytes),
        };
        unless_closed(written)
    }

    fn flush(&mut self) -> Result<()> {
        unless_closed(self.0.flush())
    }
}

fn unless_closed<T>(result: Result<T>) -> Result<T> {
    result.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => std::process::exit(0),
        kind => std::io::Error::new(kind, format!("standard output: {error}")),
    })
}

/// The text with control characters escaped, other than tabs and line breaks, and also those that
/// change the direction of writing.
fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return text.into();
    }
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            // All of them have four digits. Writing to a string does not fail.
            _ = write!(printable, "\\u{:04x}", c as u32);
        } else {
            printable.push(c);
        }
    }
    printable.into()
}

/// Whether a character may control a terminal.
fn steers(c: char) -> bool {
    let is_direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c != '\n' && c != '\t' && (c.is_control() || is_direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_spelled_out() {
        assert_eq!(printable("a \u{1b}[31mred\u{1b}[0m host"), "a \\u001b[31mred\\u001b[0m host");
        assert_eq!(
            printable("bell \u{7}, delete \u{7f}, C1 \u{9b}, back\r"),
            "bell \\u0007, delete \\u007f, C1 \\u009b, back\\u000d"
        );
        assert_eq!(printable("\u{202e}gpj.exe"), "\\u202egpj.exe");
        assert_eq!(one_line("two\r\nlines, \u{1b}[31m", 99), "two  lines, \\u001b[31m");
        assert_eq!(one_line("Äffchen", 3), "Äff...");
        assert_eq!(one_line("Äff", 3), "Äff");
        let plain = "ein Äffchen 猿\t🐒\n";
        assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain));
    }
}
