//! The `coordinator` program; see the library for how it works.

use std::process::ExitCode;

fn main() -> ExitCode {
    dico_coordinator::cli::main()
}
