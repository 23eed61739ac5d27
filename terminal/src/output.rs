//! Standard output and standard error, whose readers may go away, and which may be a terminal: what peers and files bring along must
//! not steer it.

use std::borrow::Cow;
use std::fmt::{Arguments, Write as _};
use std::io::{ErrorKind, Result, StdoutLock, Write, stderr, stdout};

/// Standard output. Control characters are written as `\u001b`, which JSON reads, too. Once its reader has closed it, as `head` does,
/// the process ends well: nobody wants to know the rest.
///
/// Not for processes that have more to do than to print: see [`tell`].
#[must_use]
pub fn out() -> impl Write {
    Output(stdout().lock())
}

/// Prints a line if that is possible. For processes that go on in any case.
pub fn tell(line: Arguments<'_>) {
    let mut out = stdout().lock();
    _ = writeln!(out, "{}", printable(&line.to_string())).and_then(|()| out.flush());
}

/// Says something on standard error, if that is possible.
pub fn complain(text: Arguments<'_>) {
    _ = writeln!(stderr(), "{}", printable(&text.to_string()));
}

/// What a peer says, as one line that does not steer a terminal: its first `max_chars` characters, of which those that would steer are
/// spelled out.
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
            // The name of a file need not be text.
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

/// A text without control characters other than tabs and line breaks, nor such as turn the direction of writing.
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

/// Whether a terminal may take a character for an order.
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
