use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use crate::Error;

/// A child process with a log. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Process {
    /// Starts `command`. Its standard error goes to the file `log`.
    ///
    /// # Errors
    /// The log cannot be created, or the program does not start.
    pub fn start(name: &str, command: &mut Command, log: PathBuf) -> Result<Self, Error> {
        let failed = |source| Error::Process { name: name.to_owned(), source };
        let file = File::create(&log).map_err(|source| Error::Log { path: log.clone(), source })?;
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().map_err(failed)?;
        let stdout = child.stdout.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { name: name.to_owned(), child, stdout: BufReader::new(stdout), log })
    }

    /// The id of the process in the operating system.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line of its standard output.
    ///
    /// # Errors
    /// It has ended.
    pub fn line(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).map_err(|source| self.failed(source))?;
        if !line.is_empty() {
            return Ok(line);
        }
        let status = self.wait()?;
        Err(Error::Ended { name: self.name.clone(), status, log: self.log.clone() })
    }

    /// Its standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status; none while it runs.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(|source| self.failed(source))
    }

    /// Waits until it ends. Returns its exit status.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.child.wait().map_err(|source| self.failed(source))
    }

    /// The rest of its standard output, up to its end.
    ///
    /// # Errors
    /// The output cannot be read or is not UTF-8.
    pub fn rest(&mut self) -> Result<String, Error> {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).map_err(|source| self.failed(source))?;
        Ok(rest)
    }

    /// Waits until it ends, successfully. Returns the rest of its standard output.
    ///
    /// # Errors
    /// It fails.
    pub fn finish(&mut self) -> Result<String, Error> {
        let rest = self.rest()?;
        let status = self.wait()?;
        self.check(status)?;
        Ok(rest)
    }

    /// The error for an exit status that is not success.
    ///
    /// # Errors
    /// The status is not success.
    pub fn check(&self, status: ExitStatus) -> Result<(), Error> {
        if status.success() {
            return Ok(());
        }
        Err(Error::Ended { name: self.name.clone(), status, log: self.log.clone() })
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Process { name: self.name.clone(), source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
