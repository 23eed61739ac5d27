use std::io::{Result, Write};

use clap::{Args, Command};
use clap_complete::Shell;

/// Print a script that completes this program's command line in a shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(self, mut command: Command) -> Result<()> {
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        crate::stdout().write_all(&script)
    }
}
