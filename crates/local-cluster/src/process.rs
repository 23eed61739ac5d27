use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use crate::Error;

/// A child process with a log file. Dropping this kills the process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Process {
    /// Starts `command`. Its standard error is written to the file `log`. Error messages call the
    /// process `name`.
    ///
    /// # Errors
    /// The log cannot be created, or the program does not start.
    pub fn start(name: &str, command: &mut Command, log: PathBuf) -> Result<Self, Error> {
        let process_error = |source| Error::Process { name: name.to_owned(), source };
        let log_file = File::create(&log).map_err(|source| Error::Log { path: log.clone(), source })?;
        let mut child = command.stdout(Stdio::piped()).stderr(log_file).spawn().map_err(process_error)?;
        let stdout = child.stdout.take().ok_or_else(|| process_error(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { name: name.to_owned(), child, stdout: BufReader::new(stdout), log })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line of standard output.
    ///
    /// # Errors
    /// The process ended without another line, or its output cannot be read or is not UTF-8.
    pub fn read_line(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).map_err(|source| self.process_error(source))?;
        if !line.is_empty() {
            return Ok(line);
        }
        let status = self.wait()?;
        Err(self.unexpected_exit(status))
    }

    /// The content of the log, which is what the process has written to standard error.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The exit status; none while the process runs.
    ///
    /// # Errors
    /// The operating system cannot report the status.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(|source| self.process_error(source))
    }

    /// Waits until the process ends. Returns the exit status.
    ///
    /// # Errors
    /// The operating system cannot report the status.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.child.wait().map_err(|source| self.process_error(source))
    }

    /// Waits until standard output is closed. Returns the part that [`Self::read_line`] has not
    /// returned.
    ///
    /// # Errors
    /// The output cannot be read or is not UTF-8.
    pub fn read_to_end(&mut self) -> Result<String, Error> {
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).map_err(|source| self.process_error(source))?;
        Ok(stdout)
    }

    /// Waits until the process ends. Returns the rest of its standard output.
    ///
    /// # Errors
    /// The exit status is not 0, or the output cannot be read or is not UTF-8.
    pub fn finish(&mut self) -> Result<String, Error> {
        let stdout = self.read_to_end()?;
        let status = self.wait()?;
        self.check_exit_status(status)?;
        Ok(stdout)
    }

    /// Checks that `status`, the exit status of this process, is 0.
    ///
    /// # Errors
    /// The exit status is not 0.
    pub fn check_exit_status(&self, status: ExitStatus) -> Result<(), Error> {
        if status.success() {
            return Ok(());
        }
        Err(self.unexpected_exit(status))
    }

    fn unexpected_exit(&self, status: ExitStatus) -> Error {
        let last_line = self.log().lines().last().unwrap_or("its log is empty").to_owned();
        Error::UnexpectedExit { name: self.name.clone(), status, last_line, log: self.log.clone() }
    }

    fn process_error(&self, source: std::io::Error) -> Error {
        Error::Process { name: self.name.clone(), source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if the process has already ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
