use std::io::{ErrorKind, Result, StdoutLock, Write, stdout};

/// Standard output. Once its reader has closed it, as `head` does, the process ends well: nobody wants to know the rest.
///
/// Not for processes that have more to do than to print: see [`tell`].
#[must_use]
pub fn out() -> impl Write {
    Output(stdout().lock())
}

/// Prints a line if that is possible. For processes that go on in any case.
pub fn tell(line: std::fmt::Arguments<'_>) {
    let mut out = stdout().lock();
    _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

struct Output(StdoutLock<'static>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        unless_closed(self.0.write(bytes))
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
